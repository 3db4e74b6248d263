"""Where the server listens: who may reach it, and why an address cannot be had."""

import os
import socket
from pathlib import Path

import grpc

from serve.errors import StartupError
from serve.settings import Settings, is_loopback, split_address

_UNIX = "unix:"


def check_reach(settings: Settings) -> None:
    """Refuse an address that other machines can reach, unless the operator said so."""
    for address in (settings.address, settings.metrics_address):
        if address is None or (address == settings.address and address.startswith(_UNIX)):
            continue
        host, _ = split_address(address)
        if not (is_loopback(host) or settings.allow_plaintext_network):
            raise StartupError(
                f"{address} can be reached from other machines, and requests travel unencrypted and unauthenticated. "
                "Use 127.0.0.1 or unix:PATH, or accept the risk with --allow-plaintext-network."
            )


def bind(server: grpc.aio.Server, address: str) -> str:
    """Open the port and return the address that clients use."""
    if address.startswith(_UNIX):
        _check_socket_free(address.removeprefix(_UNIX))
    else:
        _check_port_free(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"Cannot listen on {address}. Choose another --address.") from error
    return address if address.startswith(_UNIX) else f"{address.rpartition(':')[0]}:{port}"


def _check_port_free(address: str) -> None:
    """Say why an address cannot be had: gRPC does not tell."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: closed connections may linger
            probe.bind(target)
    except OSError as error:
        raise StartupError(f"Cannot listen on {address}: {error.strerror}. Choose another --address.") from error


def _check_socket_free(path: str) -> None:
    """Refuse a path that is taken: gRPC would silently take the place of a server that answers there."""
    if not os.access(Path(path).parent, os.W_OK):
        raise StartupError(f"Cannot listen on unix:{path}: the folder is not there, or cannot be written.")
    if Path(path).exists() and not Path(path).is_socket():
        raise StartupError(f"{path} exists and is no socket. Choose another --address.")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise StartupError(f"Another server answers on unix:{path}. Stop it, or choose another --address.")
