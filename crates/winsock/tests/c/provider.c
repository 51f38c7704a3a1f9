/* The provider interface: the table of WSPStartup, errors in *lpErrno, the upcall for routines. The argument is the agent. */
#include <winsock2.h>
#include <ws2spi.h>
#include <mstcpip.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "check.h"

static int queued, ran;

/* The part of ws2_32: it notes the call, and passes it on. */
static int queue_apc(LPWSATHREADID thread, LPWSAUSERAPC apc, DWORD_PTR context, LPINT error)
{
	queued++;
	return WPUQueueApc(thread, apc, context, error);
}

static void routine(DWORD error, DWORD count, LPWSAOVERLAPPED overlapped, DWORD flags)
{
	(void)overlapped;
	ran++;
	CHECK(error == 0 && count == 16 && flags == 0);
}

static void apc(DWORD_PTR context)
{
	CHECK(context == 42);
	ran++;
}

int main(int argc, char **argv)
{
	pid_t agent = argc == 2 ? (pid_t)atoi(argv[1]) : 0;
	WSPDATA data;
	WSPPROC_TABLE table;
	WSPUPCALLTABLE upcalls;
	WSATHREADID thread = { 0 }, copy;
	WSAOVERLAPPED ov = { 0 };
	INET_PORT_RANGE range = { 0, 4 };
	INET_PORT_RESERVATION_INSTANCE out;
	DWORD bytes;
	int error = 0, length;
	struct sockaddr_in name = { 0 };
	SOCKET s;

	alarm(300); /* a call that waits for ever must not hang the tests */
	/* Without a queue of the program's own, a thread that nobody opened is refused at once. */
	WSADATA started;
	WSATHREADID unknown = { (HANDLE)0x1234, 0 };
	CHECK(WSAStartup(MAKEWORD(2, 2), &started) == 0);
	s = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED);
	CHECK(WSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 16, &bytes, &ov, routine, &unknown, &error) ==
		      SOCKET_ERROR &&
	      error == WSAEFAULT);
	closesocket(s);
	CHECK(WSACleanup() == 0);
	memset(&table, 0, sizeof(table));
	memset(&upcalls, 0, sizeof(upcalls));
	upcalls.lpWPUQueueApc = queue_apc;
	CHECK(WSPStartup(MAKEWORD(2, 2), NULL, NULL, upcalls, &table) == WSAEFAULT);
	CHECK(WSPStartup(MAKEWORD(2, 2), &data, NULL, upcalls, &table) == 0);
	CHECK(data.wVersion == MAKEWORD(2, 2) && data.szDescription[0] == L'P');
	CHECK(WPUOpenCurrentThread(&thread, &error) == 0);
	s = table.lpWSPSocket(23, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED, &error);
	CHECK(s != INVALID_SOCKET);
	CHECK(table.lpWSPCloseSocket(s, &error) == 0);
	s = table.lpWSPSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED, &error);

	/* Errors are in *lpErrno and not in the last error. */
	WSASetLastError(4711);
	CHECK(table.lpWSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 15, &bytes, NULL, NULL, &thread, &error) ==
	      SOCKET_ERROR);
	CHECK(error == WSAEINVAL && WSAGetLastError() == 4711 && bytes == 0);
	CHECK(WSPIoctl(s, 0x98000070u, NULL, 0, NULL, 0, &bytes, NULL, NULL, &thread, &error) == SOCKET_ERROR);
	CHECK(error == WSAEOPNOTSUPP);
	CHECK(WSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 15, &bytes, NULL, NULL, &thread, NULL) ==
	      SOCKET_ERROR);
	CHECK(WSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 16, &bytes, &ov, routine, (LPWSATHREADID)8,
		       &error) == SOCKET_ERROR &&
	      error == WSAEFAULT);

	CHECK(table.lpWSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 16, &bytes, NULL, NULL, &thread, &error) ==
	      0);
	CHECK(bytes == 16);
	CHECK(WSPIoctl(s, SIO_ASSOCIATE_PORT_RESERVATION, &out.Token, 8, NULL, 0, &bytes, NULL, NULL, NULL, &error) == 0);
	name.sin_family = AF_INET;
	CHECK(table.lpWSPBind(s, (struct sockaddr *)&name, sizeof(name), &error) == 0);
	length = sizeof(name);
	CHECK(table.lpWSPGetSockName(s, (struct sockaddr *)&name, &length, &error) == 0);
	CHECK(ntohs(name.sin_port) >= START_OF(out) && ntohs(name.sin_port) < START_OF(out) + 4);

	/* The thread id is copied: a later change of the caller's has no effect. */
	copy = thread;
	range.StartPort = htons(41100);
	if (agent <= 0)
		return 2;
	CHECK(kill(agent, SIGSTOP) == 0);
	CHECK(WSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 16, &bytes, &ov, routine, &copy, &error) ==
	      SOCKET_ERROR);
	CHECK(error == WSA_IO_PENDING);
	memset(&copy, 0xff, sizeof(copy));
	CHECK(kill(agent, SIGCONT) == 0);
	CHECK(SleepEx(5000, TRUE) == WAIT_IO_COMPLETION && ran == 1 && queued == 1);
	/* Done at once: the routine has been queued by then. */
	range.StartPort = 0;
	CHECK(WSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, 4, &out, 16, &bytes, &ov, routine, &thread, &error) == 0);
	CHECK(queued == 2 && ran == 1 && SleepEx(0, TRUE) == WAIT_IO_COMPLETION && ran == 2);

	CHECK(WPUQueueApc(&thread, apc, 42, &error) == 0 && SleepEx(0, TRUE) == WAIT_IO_COMPLETION && ran == 3);
	CHECK(WPUCloseThread(&thread, &error) == 0);
	CHECK(WPUQueueApc(&thread, apc, 42, &error) == SOCKET_ERROR && error == WSAEFAULT);
	CHECK(table.lpWSPEventSelect(s, NULL, 0, &error) == SOCKET_ERROR && error == WSAEOPNOTSUPP);
	CHECK(table.lpWSPCloseSocket(s, &error) == 0);
	CHECK(table.lpWSPCloseSocket(s, &error) == SOCKET_ERROR && error == WSAENOTSOCK);
	CHECK(table.lpWSPCleanup(&error) == 0);
	CHECK(table.lpWSPCleanup(&error) == SOCKET_ERROR && error == WSANOTINITIALISED);
	return failures != 0;
}
