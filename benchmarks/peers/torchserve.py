"""TorchServe: a Java front, dynamic batches, two worker processes. Run as itself it is the server, else its handler."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
MODEL = {
    "1.0": {
        "defaultVersion": True,
        "marName": "draw.mar",
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 32,
        "maxBatchDelay": 2,
    }
}


class Draw:
    """Draws what has come together."""

    def initialize(self, context: Any) -> None:
        """Load everything."""
        sys.path.insert(0, str(ROOT))
        from harness import workload

        self.workload = workload
        workload.warm_up()

    def handle(self, data: list[Any], context: Any) -> list[bytes]:
        """A PNG for each."""
        bodies = [one["body"] for one in data]
        asked = [json.loads(body) if isinstance(body, bytes | bytearray) else body for body in bodies]
        return self.workload.generate_pngs([(one["model"], one["seed"], one["steps"]) for one in asked])


def main() -> None:
    """Pack the handler, and serve it until ended."""
    port = int(os.environ["PORT"])
    with tempfile.TemporaryDirectory() as folder:
        binaries = Path(sys.executable).parent
        pack = [binaries / "torch-model-archiver", "--model-name", "draw", "--version", "1.0", "--handler", __file__]
        subprocess.run([*pack, "--export-path", folder], check=True)
        addresses = [
            f"{name}_address=http://127.0.0.1:{port + i}"
            for i, name in enumerate(("inference", "management", "metrics"))
        ]
        lines = [*addresses, "load_models=draw.mar", f"models={json.dumps({'draw': MODEL})}"]
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
