"""HTTP/3 by aioquic, which knows no batches: a server of one page, and a client that fetches it.

http3.py serve ADDRESS PORT KEY CERTIFICATE    the page has as many bytes as its path says
http3.py fetch ADDRESS PORT PATH               prints its length, and "ok" if it is whole
"""

import asyncio
import contextlib
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent


class Server(QuicConnectionProtocol):  # type: ignore[misc]
    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is None:
            return
        for each in self.http.handle_event(event):
            if isinstance(each, HeadersReceived):
                size = int(dict(each.headers)[b":path"][1:])
                self.http.send_headers(each.stream_id, [(b":status", b"200")])
                self.http.send_data(each.stream_id, b"x" * size, end_stream=True)
                self.transmit()


class Client(QuicConnectionProtocol):  # type: ignore[misc]
    def begin(self, path: str) -> "asyncio.Future[int]":
        self.http = H3Connection(self._quic)
        self.size = 0
        self.whole: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stream = self._quic.get_next_available_stream_id()
        names = {":method": "GET", ":scheme": "https", ":authority": "office", ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in names.items()]
        self.http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        return self.whole

    def quic_event_received(self, event: QuicEvent) -> None:
        if not hasattr(self, "http"):
            return
        for each in self.http.handle_event(event):
            if isinstance(each, DataReceived):
                self.size += len(each.data)
                if each.stream_ended and not self.whole.done():
                    self.whole.set_result(self.size)


async def serve_for_ever(address: str, port: int, key: str, certificate: str) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, is_client=False)
    configuration.load_cert_chain(certificate, key)
    await serve(address, port, configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def fetch(address: str, port: int, path: str) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    async with connect(
        address, port, configuration=configuration, create_protocol=Client
    ) as client:
        size = await client.begin(path)
    print(size, "ok" if size == int(path[1:]) else "broken")


def main(verb: str, address: str, port: str, *rest: str) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        if verb == "serve":
            asyncio.run(serve_for_ever(address, int(port), *rest))
        else:
            asyncio.run(fetch(address, int(port), *rest))


if __name__ == "__main__":
    main(*sys.argv[1:])
