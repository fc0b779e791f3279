"""TorchServe: a server in Java, dynamic batches, two worker processes.

Run as a script, this module starts the server. TorchServe loads it as its handler.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
NAME = "generator"
MODEL = {
    "1.0": {
        "defaultVersion": True,
        "marName": f"{NAME}.mar",
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 32,
        "maxBatchDelay": 2,
    }
}


class Generator:
    """Generates the images of a batch of requests."""

    def initialize(self, context: Any) -> None:
        """Load the weights."""
        sys.path.insert(0, str(ROOT))
        from harness import workload

        self.workload = workload
        workload.warm_up()

    def handle(self, data: list[Any], context: Any) -> list[bytes]:
        """Return a PNG for each request."""
        bodies = [item["body"] for item in data]
        requests = [json.loads(body) if isinstance(body, bytes | bytearray) else body for body in bodies]
        return self.workload.generate_pngs([(each["model"], each["seed"], each["steps"]) for each in requests])


def main() -> None:
    """Pack the handler and run the server until it is stopped."""
    port = int(os.environ["PORT"])
    with tempfile.TemporaryDirectory() as folder:
        binaries = Path(sys.executable).parent
        pack = [binaries / "torch-model-archiver", "--model-name", NAME, "--version", "1.0", "--handler", __file__]
        subprocess.run([*pack, "--export-path", folder], check=True)
        addresses = [
            f"{name}_address=http://127.0.0.1:{port + i}"
            for i, name in enumerate(("inference", "management", "metrics"))
        ]
        lines = [*addresses, f"load_models={NAME}.mar", f"models={json.dumps({NAME: MODEL})}"]
        (Path(folder) / "config").write_text("\n".join(lines))
        start = [
            binaries / "torchserve",
            "--start",
            "--foreground",
            "--disable-token-auth",
            "--model-store",
            folder,
            "--ncs",
        ]
        environment = os.environ | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "LOG_LOCATION": folder,
            "METRICS_LOCATION": folder,
        }
        subprocess.run([*start, "--ts-config", f"{folder}/config"], check=False, env=environment, cwd=folder)


if __name__ == "__main__":
    main()
