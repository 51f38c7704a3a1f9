/* Wrong pointers in every position: each call returns, and says WSAEFAULT where it had to follow one. */
#include <winsock2.h>
#include <ws2spi.h>
#include <mstcpip.h>
#include <iphlpapi.h>
#include <string.h>
#include <sys/mman.h>
#include "check.h"

enum { WAYS = 9 };
static char *wrong[WAYS];
static char *good;

static char *pages(int protection)
{
	char *at = mmap(NULL, 8192, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(at + 4096, 4096);
	return at;
}

/* Positions of WSAIoctl's pointers. */
enum { INPUT, OUTPUT, RETURNED, OVERLAPPED_AT, ROUTINE, POSITIONS };

static void abuse(DWORD code, int position, char *pointer)
{
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	INET_PORT_RESERVATION_INSTANCE held;
	char *p[POSITIONS];
	DWORD in = code == SIO_ACQUIRE_PORT_RESERVATION ? 4 : 8, out = code == SIO_ACQUIRE_PORT_RESERVATION ? 16 : 0;
	int i, error = 0, result, thread_error = 0;
	INET_PORT_RANGE range = { 0, 2 };

	CHECK(acquire(s, 0, 2, &held) == 0);
	memset(good, 0, 4096);
	for (i = 0; i < POSITIONS; i++)
		p[i] = good + 512 * i;
	if (code == SIO_ACQUIRE_PORT_RESERVATION)
		memcpy(p[INPUT], &range, 4);
	else
		memcpy(p[INPUT], &held.Token, 8);
	p[ROUTINE] = NULL;
	p[position] = pointer;
	if (!out)
		p[OUTPUT] = position == OUTPUT ? pointer : NULL;
	result = WSAIoctl(s, code, p[INPUT], in, p[OUTPUT], out, (LPDWORD)p[RETURNED], (LPWSAOVERLAPPED)p[OVERLAPPED_AT],
			  (LPWSAOVERLAPPED_COMPLETION_ROUTINE)(uintptr_t)p[ROUTINE]);
	error = result == 0 ? 0 : WSAGetLastError();
	/* A page that can only be read will do as input: there is nothing but zeros on it. NULL means "none" at the end. */
	if (result != 0)
		CHECK(error == WSAEFAULT || (position == INPUT && error == WSAEINVAL && (pointer == wrong[4] || pointer == wrong[8])));
	if ((position == OUTPUT && out) || position == OVERLAPPED_AT)
		CHECK(result != 0 || (pointer == NULL && position == OVERLAPPED_AT));
	result = WSPIoctl(s, code, p[INPUT], in, p[OUTPUT], out, (LPDWORD)p[RETURNED], (LPWSAOVERLAPPED)p[OVERLAPPED_AT],
			  NULL, (LPWSATHREADID)pointer, &thread_error);
	(void)WSPIoctl(s, code, p[INPUT], in, p[OUTPUT], out, (LPDWORD)p[RETURNED], NULL, NULL, NULL, (LPINT)pointer);
	(void)result;
	closesocket(s);
}

static void the_rest(char *x)
{
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	DWORD a = 0, b = 0;
	WSAOVERLAPPED ov;
	WSPUPCALLTABLE upcalls;
	int length = 16;
	memset(&ov, 0, sizeof(ov));
	memset(&upcalls, 0, sizeof(upcalls));
	(void)WSAStartup(MAKEWORD(2, 2), (LPWSADATA)x);
	(void)(WSAGetOverlappedResult(s, (LPWSAOVERLAPPED)x, &a, FALSE, &b));
	(void)(WSAGetOverlappedResult(s, &ov, (LPDWORD)x, FALSE, &b));
	(void)(WSAGetOverlappedResult(s, &ov, &a, FALSE, (LPDWORD)x));
	(void)(CancelIoEx((HANDLE)x, (LPOVERLAPPED)x));
	CHECK(WSAWaitForMultipleEvents(2, (const WSAEVENT *)x, FALSE, 0, FALSE) == WSA_WAIT_FAILED);
	CHECK(!WSASetEvent((WSAEVENT)x) && !WSAResetEvent((WSAEVENT)x) && !WSACloseEvent((WSAEVENT)x));
	CHECK(!CloseHandle((HANDLE)x));
	CHECK(WaitForSingleObject((HANDLE)x, 0) == WAIT_FAILED);
	(void)bind(s, (struct sockaddr *)x, 16);
	(void)connect(s, (struct sockaddr *)x, 16);
	(void)getsockname(s, (struct sockaddr *)x, &length);
	(void)getsockname(s, (struct sockaddr *)good, (int *)x);
	(void)accept(s, (struct sockaddr *)x, (int *)x);
	(void)setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, x, 4);
	(void)setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, x, 4);
	(void)getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, x, (int *)x);
	(void)getsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, x, (int *)x);
	(void)ioctlsocket(s, FIONBIO, (u_long *)x);
	(void)ioctlsocket(s, FIONREAD, (u_long *)x);
	(void)send(s, x, 8, 0);
	(void)recv(s, x, 8, 0);
	(void)WSASend(s, (LPWSABUF)x, 1, &a, 0, NULL, NULL);
	(void)WSASend(s, (LPWSABUF)good, 1, (LPDWORD)x, 0, NULL, NULL);
	(void)WSARecv(s, (LPWSABUF)x, 1, &a, &b, NULL, NULL);
	(void)WSARecv(s, (LPWSABUF)good, 1, &a, (LPDWORD)x, NULL, NULL);
	(void)WSAPoll((LPWSAPOLLFD)x, 2, 0);
	(void)select(0, (fd_set *)x, NULL, NULL, (struct timeval *)x);
	(void)WSADuplicateSocketW(s, 1, (LPWSAPROTOCOL_INFOW)x);
	if (x)
		CHECK(WSASocketW(-1, -1, -1, (LPWSAPROTOCOL_INFOW)x, 0, 0) == INVALID_SOCKET);
	(void)WSPStartup(MAKEWORD(2, 2), (LPWSPDATA)x, NULL, upcalls, (LPWSPPROC_TABLE)x);
	(void)WPUQueueApc((LPWSATHREADID)x, (LPWSAUSERAPC)(uintptr_t)x, 0, (LPINT)x);
	(void)WPUOpenCurrentThread((LPWSATHREADID)x, (LPINT)x);
	(void)WPUCloseThread((LPWSATHREADID)x, (LPINT)x);
	(void)CreatePersistentTcpPortReservation(htons(5000), 1, (PULONG64)x);
	(void)LookupPersistentUdpPortReservation(htons(5000), 1, (PULONG64)x);
	closesocket(s);
}

/* With the argument "codes": the control codes only. */
int main(int argc, char **argv)
{
	static const DWORD codes[] = { SIO_ACQUIRE_PORT_RESERVATION, SIO_RELEASE_PORT_RESERVATION,
				       SIO_ASSOCIATE_PORT_RESERVATION, (DWORD)FIONBIO, (DWORD)FIONREAD };
	WSADATA data;
	char *end;
	int way, position;
	size_t code;

	int codes_only = argc > 1 && !strcmp(argv[1], "codes");
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	good = pages(PROT_READ | PROT_WRITE);
	end = pages(PROT_READ | PROT_WRITE);
	wrong[0] = NULL;
	wrong[1] = (char *)8;
	wrong[2] = end + 4096; /* unmapped */
	wrong[3] = end + 4093; /* begins on a page and ends behind it */
	wrong[4] = pages(PROT_READ);
	wrong[5] = pages(PROT_NONE);
	wrong[6] = (char *)(uintptr_t)-3; /* wraps round */
	wrong[7] = (char *)((uintptr_t)-1 / 2 + 8); /* no address at all */
	wrong[8] = pages(PROT_READ) + 4091;
	for (code = 0; code < sizeof(codes) / sizeof(codes[0]); code++)
		for (position = 0; position < POSITIONS; position++)
			for (way = 0; way < WAYS; way++)
				abuse(codes[code], position, wrong[way]);
	for (way = 0; way < WAYS && !codes_only; way++)
		the_rest(wrong[way]);
	/* Unaligned is not wrong. */
	{
		SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
		INET_PORT_RANGE range = { 0, 3 };
		memcpy(good + 1, &range, 4);
		CHECK(WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, good + 1, 4, good + 101, 16, (LPDWORD)(good + 203), NULL,
			       NULL) == 0);
		CHECK(good[101 + 2] == 3 && good[203] == 16);
		closesocket(s);
	}
	return failures != 0;
}
