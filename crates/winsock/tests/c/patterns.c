/* How programs for Windows use port reservations, each after its model. */
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>
#include <stdlib.h>
#include "check.h"

/* MsQuic: one port, one socket for each processor, all bound to it. */
static void one_port_many_sockets(void)
{
	enum { SOCKETS = 4 };
	SOCKET s[SOCKETS];
	INET_PORT_RESERVATION_INSTANCE port;
	SOCKET outsider;
	int i, yes = 1;

	for (i = 0; i < SOCKETS; i++) {
		s[i] = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
		CHECK(s[i] != INVALID_SOCKET);
		CHECK(setsockopt(s[i], SOL_SOCKET, SO_REUSEPORT, (char *)&yes, sizeof(yes)) == 0);
		if (i == 0)
			CHECK(acquire(s[0], 61444, 1, &port) == 0);
		CHECK(associate(s[i], &port) == 0);
		CHECK(bind_port(s[i], 61444) == 0);
		CHECK(port_of(s[i]) == 61444);
	}
	/* Its test: a second reservation of the port is refused. */
	outsider = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
	CHECK_ERROR(acquire(outsider, 61444, 1, &port), WSAEADDRINUSE);
	closesocket(outsider);
	/* No release: closing is enough. */
	for (i = 0; i < SOCKETS; i++)
		CHECK(closesocket(s[i]) == 0);
	outsider = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
	CHECK(acquire(outsider, 61444, 1, &port) == 0);
	closesocket(outsider);
}

/* Demikernel: halve the block until it fits; one socket holds them all. */
static void halve_until_it_fits(void)
{
	SOCKET keeper = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	INET_PORT_RESERVATION_INSTANCE block;
	int size = 16384, tries = 0;

	while (acquire(keeper, 0, size, &block) != 0) {
		CHECK(WSAGetLastError() == WSAENOBUFS);
		size /= 2;
		if (++tries > 5)
			break;
	}
	CHECK(tries >= 1 && tries <= 5 && block.NumberOfPorts == size);
	closesocket(keeper);
}

/* ms-nfs41-client: bindresvport, one privileged port after the other. */
static void bindresvport_one_at_a_time(void)
{
	SOCKET taken = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	INET_PORT_RESERVATION_INSTANCE port;
	int number, found = 0;

	CHECK(acquire(taken, 600, 2, &port) == 0);
	for (number = 600; number < 1024 && !found; number++) {
		if (acquire(s, number, 1, &port) == 0) {
			CHECK(associate(s, &port) == 0);
			found = number;
		} else {
			CHECK(WSAGetLastError() == WSAEADDRINUSE);
		}
	}
	CHECK(found == 602);
	CHECK(bind_port(s, found) == 0 && port_of(s) == found);
	closesocket(s);
	closesocket(taken);
}

/* Microsoft's diagnosis of container hosts: ten blocks of 64 on one socket, of type 0 and protocol 0. */
static void ten_blocks_of_64(void)
{
	SOCKET s = socket(AF_INET, 0, 0);
	INET_PORT_RESERVATION_INSTANCE block[10];
	int i, j;

	CHECK(s != INVALID_SOCKET);
	for (i = 0; i < 10; i++) {
		CHECK(acquire(s, 0, 64, &block[i]) == 0);
		CHECK(block[i].NumberOfPorts == 64);
		for (j = 0; j < i; j++) {
			int distance = START_OF(block[i]) - START_OF(block[j]);
			CHECK(abs(distance) >= 64 && block[i].Token != block[j].Token);
		}
	}
	for (i = 0; i < 10; i++)
		CHECK(release(s, &block[i]) == 0);
	closesocket(s);
}

/* The page on ACQUIRE: everything on one socket, released while bound. */
static void all_on_one_socket(void)
{
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	INET_PORT_RESERVATION_INSTANCE block;

	CHECK(acquire(s, 0, 20, &block) == 0);
	CHECK(associate(s, &block) == 0);
	CHECK(bind_port(s, 0) == 0);
	CHECK(port_of(s) >= START_OF(block) && port_of(s) < START_OF(block) + 20);
	CHECK(release(s, &block) == 0);
	CHECK(closesocket(s) == 0);
}

/* A WinDivert bridge: a block acquired over IPv4, used over IPv6. */
static void acquired_on_ipv4_used_on_ipv6(void)
{
	SOCKET keeper = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), s = socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP);
	INET_PORT_RESERVATION_INSTANCE block;
	struct sockaddr_in6 name = { 0 };
	int length = sizeof(name);

	name.sin6_family = AF_INET6;
	CHECK(acquire(keeper, 0, 1024, &block) == 0);
	CHECK(associate(s, &block) == 0);
	CHECK(bind(s, (struct sockaddr *)&name, sizeof(name)) == 0);
	CHECK(getsockname(s, (struct sockaddr *)&name, &length) == 0);
	CHECK(ntohs(name.sin6_port) >= START_OF(block) && ntohs(name.sin6_port) < START_OF(block) + 1024);
	closesocket(s);
	closesocket(keeper);
}

int main(void)
{
	WSADATA data;

	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	one_port_many_sockets();
	halve_until_it_fits();
	bindresvport_one_at_a_time();
	ten_blocks_of_64();
	all_on_one_socket();
	acquired_on_ipv4_used_on_ipv6();
	CHECK(WSACleanup() == 0);
	return failures != 0;
}
