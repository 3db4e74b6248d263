"""What a robot calls the service with: single requests, control sessions, a watchdog.

It needs numpy, grpcio, protobuf and googleapis-common-protos. `serve.client.aio` has the same for asyncio.
"""

from serve.client.sync import PolicyCaller, PolicyClient

__all__ = ["PolicyCaller", "PolicyClient"]
