/* Without kernel enforcement: what the layer can do by itself. */
#include <sys/resource.h>
#include <winsock2.h>
#include <mstcpip.h>
#include "check.h"

int main(void)
{
	WSADATA data;
	INET_PORT_RESERVATION_INSTANCE block, other;
	struct rlimit few = { 64, 64 };
	SOCKET keeper, s, raw;

	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	keeper = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK(acquire(keeper, 0, 4, &block) == 0);
	CHECK_ERROR(acquire(keeper, START_OF(block), 1, &other), WSAEADDRINUSE);
	CHECK_ERROR(bind_port(s, START_OF(block)), WSAEADDRINUSE);
	CHECK(associate(s, &block) == 0);
	CHECK(bind_port(s, 0) == 0);
	CHECK(port_of(s) >= START_OF(block) && port_of(s) < START_OF(block) + 4);
	CHECK_ERROR(associate(s, &block), WSAEINVAL);
	CHECK(release(s, &block) == 0);
	CHECK_ERROR(release(s, &block), WSAEINVAL);
	raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	CHECK_ERROR(acquire(raw, 0, 1, &other), WSAEOPNOTSUPP);
	/* Closing the owner socket ends it. */
	CHECK(acquire(keeper, 0, 2, &block) == 0);
	CHECK(closesocket(keeper) == 0);
	CHECK(closesocket(s) == 0);
	s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK(bind_port(s, START_OF(block)) == 0);
	closesocket(s);
	closesocket(raw);
	/* More ports than descriptors: none is held, and a block that fits is. */
	CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
	keeper = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK_ERROR(acquire(keeper, 0, 100, &block), WSAENOBUFS);
	CHECK_ERROR(acquire(keeper, 20000, 100, &block), WSAENOBUFS);
	CHECK(acquire(keeper, 0, 40, &block) == 0);
	CHECK(closesocket(keeper) == 0);
	CHECK(WSACleanup() == 0);
	return failures != 0;
}
