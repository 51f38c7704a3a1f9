/* The ordinary functions, with Winsock's errors, sets and numbers. */
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>
#include <iphlpapi.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>
#include "check.h"

static void streams(void)
{
	SOCKET listener = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), client, server;
	struct sockaddr_in name = { 0 };
	int length = sizeof(name), value = 0, size = sizeof(value);
	u_long yes = 1, waiting = 0;
	char text[16];
	fd_set reading, writing;
	struct timeval second = { 1, 0 }, no = { 0, 0 };
	DWORD moved = 0, flags = 0;
	WSABUF buffers[2];
	WSAPOLLFD polled;

	name.sin_family = AF_INET;
	name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(bind(listener, (struct sockaddr *)&name, sizeof(name)) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&name, &length) == 0 && name.sin_port);
	CHECK(listen(listener, SOMAXCONN) == 0);
	CHECK(ioctlsocket(listener, FIONBIO, &yes) == 0);
	CHECK_ERROR(accept(listener, NULL, NULL) != INVALID_SOCKET ? 0 : -1, WSAEWOULDBLOCK);
	FD_ZERO(&reading);
	FD_SET(listener, &reading);
	FD_SET(listener, &reading);
	CHECK(reading.fd_count == 1);
	CHECK(select(0, &reading, NULL, NULL, &no) == 0 && reading.fd_count == 0);

	client = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK(connect(client, (struct sockaddr *)&name, sizeof(name)) == 0);
	FD_SET(listener, &reading);
	CHECK(select(0, &reading, NULL, NULL, &second) == 1 && FD_ISSET(listener, &reading));
	server = accept(listener, NULL, NULL);
	CHECK(server != INVALID_SOCKET);
	CHECK(getpeername(server, (struct sockaddr *)&name, &length) == 0);
	FD_ZERO(&reading);
	FD_ZERO(&writing);
	FD_SET(server, &reading);
	FD_SET(client, &writing);
	CHECK(select(0, &reading, &writing, NULL, &second) == 1 && FD_ISSET(client, &writing));

	CHECK(send(client, "hello", 5, 0) == 5);
	polled.fd = server;
	polled.events = POLLIN;
	CHECK(WSAPoll(&polled, 1, 1000) == 1 && (polled.revents & POLLIN));
	CHECK(ioctlsocket(server, FIONREAD, &waiting) == 0 && waiting == 5);
	CHECK(recv(server, text, 5, 0) == 5 && !memcmp(text, "hello", 5));
	buffers[0].buf = (char *)"wo";
	buffers[0].len = 2;
	buffers[1].buf = (char *)"rld";
	buffers[1].len = 3;
	CHECK(WSASend(server, buffers, 2, &moved, 0, NULL, NULL) == 0 && moved == 5);
	buffers[0].buf = text;
	buffers[0].len = sizeof(text);
	CHECK(WSARecv(client, buffers, 1, &moved, &flags, NULL, NULL) == 0 && moved == 5);

	/* Timeouts in milliseconds. */
	value = 50;
	CHECK(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, (char *)&value, sizeof(value)) == 0);
	value = 0;
	CHECK(getsockopt(client, SOL_SOCKET, SO_RCVTIMEO, (char *)&value, &size) == 0);
	/* The kernel rounds up to its clock. */
	CHECK(value >= 50 && value <= 60);
	CHECK_ERROR(recv(client, text, 1, 0) >= 0 ? 0 : -1, WSAEWOULDBLOCK);
	value = 1;
	CHECK(setsockopt(client, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (char *)&value, sizeof(value)) == 0);
	value = 0;
	CHECK(getsockopt(client, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (char *)&value, &size) == 0 && value == 1);

	/* No SIGPIPE. */
	CHECK(shutdown(client, SD_SEND) == 0);
	CHECK_ERROR(send(client, "x", 1, 0) == 1 ? 0 : -1, WSAESHUTDOWN);
	CHECK(recv(server, text, 1, 0) == 0);
	CHECK(closesocket(client) == 0 && closesocket(server) == 0 && closesocket(listener) == 0);
	CHECK_ERROR(closesocket(listener), WSAENOTSOCK);
	CHECK_ERROR(closesocket(STDIN_FILENO), WSAENOTSOCK);
	CHECK_ERROR(select(0, NULL, NULL, NULL, &no) >= 0 ? 0 : -1, WSAEINVAL);
}

static void families(void)
{
	SOCKET four = socket(AF_INET, SOCK_STREAM, 0), six = socket(23, SOCK_STREAM, 0), again;
	struct sockaddr_in6 name = { 0 };
	WSAPROTOCOL_INFOW info;
	int value = 0, size = sizeof(value);

	CHECK(six != INVALID_SOCKET);
	CHECK(getsockopt(six, IPPROTO_IPV6, IPV6_V6ONLY, (char *)&value, &size) == 0 && value == 1);
	/* Both families on one port, as every dual server for Windows does. */
	CHECK(bind_port(four, 0) == 0);
	name.sin6_family = AF_INET6;
	name.sin6_port = htons((USHORT)port_of(four));
	CHECK(bind(six, (struct sockaddr *)&name, sizeof(name)) == 0);
	CHECK_ERROR(socket(99, 1, 0) != INVALID_SOCKET ? 0 : -1, WSAEAFNOSUPPORT);
	CHECK_ERROR(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP) != INVALID_SOCKET ? 0 : -1, WSAEPROTONOSUPPORT);
	/* A duplicate is the same socket. */
	CHECK(WSADuplicateSocketW(four, (DWORD)getpid(), &info) == 0);
	CHECK(info.iSocketType == SOCK_STREAM && info.iAddressFamily == AF_INET);
	again = WSASocketW(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &info, 0, WSA_FLAG_OVERLAPPED);
	CHECK(again != INVALID_SOCKET && again != four && port_of(again) == port_of(four));
	closesocket(four);
	CHECK(port_of(again) > 0);
	CHECK(WSASocketW(-1, -1, -1, &info, 0, 0) == INVALID_SOCKET);
	closesocket(again);
	closesocket(six);
}

static void persistent(void)
{
	ULONG64 token = 0;

	CHECK(CreatePersistentTcpPortReservation(0, 1, &token) == ERROR_INVALID_PARAMETER);
	CHECK(CreatePersistentTcpPortReservation(htons(5000), 0, &token) == ERROR_INVALID_PARAMETER);
	CHECK(CreatePersistentUdpPortReservation(htons(65535), 2, &token) == ERROR_INVALID_PARAMETER);
	CHECK(DeletePersistentTcpPortReservation(0, 1) == ERROR_INVALID_PARAMETER);
	CHECK(DeletePersistentUdpPortReservation(htons(5000), 0) == ERROR_INVALID_PARAMETER);
	CHECK(LookupPersistentTcpPortReservation(0, 1, &token) == ERROR_INVALID_PARAMETER);
	CHECK(LookupPersistentUdpPortReservation(htons(5000), 0, &token) == ERROR_INVALID_PARAMETER);
}

static void text(void)
{
	wchar_t wide[64];
	char narrow[64];

	CHECK(swprintf(wide, 64, L"%s|%ws|%hs|%I64d|%5.1f", L"w", L"v", "n", (long long)-5, 2.5) == 14);
	CHECK(!wcscmp(wide, L"w|v|n|-5|  2.5"));
	CHECK(_snprintf(narrow, 64, "%s|%ws|%I64x|%I32u", "n", L"w", 0x123456789abull, 7u) == 17);
	CHECK(!strcmp(narrow, "n|w|123456789ab|7"));
	CHECK(_wtoi(L" -42abc") == -42);
	/* Wide and narrow on one stream. */
	CHECK(wprintf(L"%s\n", L"wide") == 5);
	CHECK(printf("%s\n", "narrow") == 7);
}

int main(void)
{
	WSADATA data;

	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	CHECK(LOBYTE(data.wVersion) == 2 && HIBYTE(data.wVersion) == 2);
	streams();
	families();
	persistent();
	text();
	CHECK(WSACleanup() == 0);
	return failures != 0;
}
