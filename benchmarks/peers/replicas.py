"""This application as replicas of Ray Serve."""

import os
import time

from ray import serve

from service.server.ray_serve import Replica

if __name__ == "__main__":
    serve.start(http_options={"port": int(os.environ["PORT"])})
    deployment = Replica.options(
        num_replicas=int(os.environ["REPLICAS"]), max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5}
    )
    serve.run(deployment.bind({"allow_anonymous": True, "log_level": "warning"}, None), route_prefix="/")
    while True:
        time.sleep(1)
