/* Wrong pointers in every position: each call returns, and says WSAEFAULT where it had to follow one. */
#include <winsock2.h>
#include <ws2spi.h>
#include <mstcpip.h>
#include <iphlpapi.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
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
	/* Nothing there is code, so it is no routine, even where it can be read. */
	if (position == ROUTINE && pointer && p[OVERLAPPED_AT])
		CHECK(result != 0 && error == WSAEFAULT);
	if ((position == OUTPUT && out) || position == OVERLAPPED_AT)
		CHECK(result != 0 || (pointer == NULL && position == OVERLAPPED_AT));
	result = WSPIoctl(s, code, p[INPUT], in, p[OUTPUT], out, (LPDWORD)p[RETURNED], (LPWSAOVERLAPPED)p[OVERLAPPED_AT],
			  NULL, (LPWSATHREADID)pointer, &thread_error);
	(void)WSPIoctl(s, code, p[INPUT], in, p[OUTPUT], out, (LPDWORD)p[RETURNED], NULL, NULL, NULL, (LPINT)pointer);
	(void)result;
	closesocket(s);
}

/* A call that has to fail with that error. */
#define FAILS(call, failure, code)                              \
	do {                                                    \
		WSASetLastError(0);                             \
		CHECK((call) == (failure));                     \
		CHECK(WSAGetLastError() == (code));             \
	} while (0)
#define FAULTS(call) FAILS(call, SOCKET_ERROR, WSAEFAULT)

/* Memory that is written to: with each wrong pointer the call must fail. */
static void outputs(char *x)
{
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	DWORD a = 0, b = 0;
	WSAOVERLAPPED ov;
	WSPUPCALLTABLE upcalls;
	WSPDATA data;
	WSPPROC_TABLE table;
	WSATHREADID thread;
	WSABUF buffer = { 4, good };
	int length = 16, error = 0;

	memset(&ov, 0, sizeof(ov));
	memset(&upcalls, 0, sizeof(upcalls));
	CHECK(WSAStartup(MAKEWORD(2, 2), (LPWSADATA)x) == WSAEFAULT);
	FAILS(WSAGetOverlappedResult(s, &ov, (LPDWORD)x, FALSE, &b), FALSE, WSAEFAULT);
	FAILS(WSAGetOverlappedResult(s, &ov, &a, FALSE, (LPDWORD)x), FALSE, WSAEFAULT);
	FAULTS(getsockname(s, (struct sockaddr *)x, &length));
	FAULTS(getsockname(s, (struct sockaddr *)good, (int *)x));
	(void)getpeername(s, (struct sockaddr *)x, &length);
	(void)getpeername(s, (struct sockaddr *)good, (int *)x);
	(void)accept(s, (struct sockaddr *)x, (int *)x);
	length = 4;
	FAULTS(getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, x, &length));
	FAULTS(getsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, x, &length));
	FAULTS(getsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (char *)&a, (int *)x));
	FAULTS(getsockopt(s, SOL_SOCKET, SO_TYPE, (char *)&a, (int *)x));
	FAULTS(ioctlsocket(s, FIONREAD, (u_long *)x));
	(void)recv(s, x, 8, 0);
	(void)recvfrom(s, x, 8, 0, (struct sockaddr *)x, (int *)x);
	FAULTS(WSASend(s, &buffer, 1, (LPDWORD)x, 0, NULL, NULL));
	FAULTS(WSASendTo(s, &buffer, 1, (LPDWORD)x, 0, NULL, 0, NULL, NULL));
	FAULTS(WSARecv(s, &buffer, 1, (LPDWORD)x, &b, NULL, NULL));
	(void)WSARecvFrom(s, &buffer, 1, &a, &b, (struct sockaddr *)x, (int *)x, NULL, NULL);
	FAULTS(WSARecvFrom(s, &buffer, 1, (LPDWORD)x, &b, NULL, NULL, NULL, NULL));
	FAULTS(WSADuplicateSocketW(s, (DWORD)getpid(), (LPWSAPROTOCOL_INFOW)x));
	FAULTS(WSADuplicateSocketA(s, (DWORD)getpid(), (LPWSAPROTOCOL_INFOA)x));
	FAULTS(WSAPoll((LPWSAPOLLFD)x, 2, 0));
	CHECK(WSPStartup(MAKEWORD(2, 2), (LPWSPDATA)x, NULL, upcalls, &table) == WSAEFAULT);
	CHECK(WSPStartup(MAKEWORD(2, 2), &data, NULL, upcalls, (LPWSPPROC_TABLE)x) == WSAEFAULT);
	CHECK(WPUOpenCurrentThread((LPWSATHREADID)x, &error) == SOCKET_ERROR && error == WSAEFAULT);
	/* A wrong lpErrno: the failure itself is reported. */
	(void)WPUOpenCurrentThread(&thread, (LPINT)x);
	CHECK(WPUCloseThread((LPWSATHREADID)x, (LPINT)x) == SOCKET_ERROR);
	CHECK(WPUQueueApc((LPWSATHREADID)x, NULL, 0, (LPINT)x) == SOCKET_ERROR);
	CHECK(CreatePersistentTcpPortReservation(htons(5000), 1, (PULONG64)x) == ERROR_INVALID_PARAMETER);
	CHECK(CreatePersistentUdpPortReservation(htons(5000), 1, (PULONG64)x) == ERROR_INVALID_PARAMETER);
	CHECK(LookupPersistentTcpPortReservation(htons(5000), 1, (PULONG64)x) == ERROR_INVALID_PARAMETER);
	CHECK(LookupPersistentUdpPortReservation(htons(5000), 1, (PULONG64)x) == ERROR_INVALID_PARAMETER);
	closesocket(s);
}

/* Memory that is read: `readable` says whether the memory can be read after all. */
static void inputs(char *x, int readable)
{
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	DWORD a = 0, b = 0;
	WSABUF buffer = { 4, good };
	WSATHREADID thread = { 0 };
	WSPUPCALLTABLE upcalls;
	WSPDATA data;
	WSPPROC_TABLE table;
	fd_set set;
	struct timeval none = { 0, 0 };
	int error = 0;
	void *routine = x;

	memset(&upcalls, 0, sizeof(upcalls));
	if (!readable) {
		FAULTS(bind(s, (struct sockaddr *)x, 16));
		FAULTS(connect(s, (struct sockaddr *)x, 16));
		FAULTS(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, x, 4));
		FAULTS(setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, x, 4));
		FAULTS(setsockopt(s, SOL_SOCKET, SO_DONTLINGER, x, 4));
		FAULTS(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, x, 4));
		FAULTS(ioctlsocket(s, FIONBIO, (u_long *)x));
		FAULTS(WSASend(s, (LPWSABUF)x, 1, &a, 0, NULL, NULL));
		FAULTS(WSARecv(s, (LPWSABUF)x, 1, &a, &b, NULL, NULL));
		FAULTS(WSARecv(s, &buffer, 1, &a, (LPDWORD)x, NULL, NULL));
		FAILS(WSAWaitForMultipleEvents(2, (const WSAEVENT *)x, FALSE, 0, FALSE), WSA_WAIT_FAILED, WSAEFAULT);
		FAILS(WaitForMultipleObjects(2, (const HANDLE *)x, FALSE, 0), WAIT_FAILED, WSAEFAULT);
		FAILS(WaitForMultipleObjectsEx(2, (const HANDLE *)x, FALSE, 0, TRUE), WAIT_FAILED, WSAEFAULT);
		FAILS(WSAGetOverlappedResult(s, (LPWSAOVERLAPPED)x, &a, FALSE, &b), FALSE, WSAEFAULT);
		CHECK(!__WSAFDIsSet(s, (fd_set *)x));
		FD_ZERO(&set);
		FD_SET(s, &set);
		if (x) { /* NULL is "none" and "for ever" */
			FAULTS(select(0, (fd_set *)x, NULL, NULL, &none));
			FAULTS(select(0, NULL, (fd_set *)x, NULL, &none));
			FAULTS(select(0, NULL, NULL, (fd_set *)x, &none));
			FAULTS(select(0, &set, NULL, NULL, (struct timeval *)x));
			FAILS(WSASocketW(-1, -1, -1, (LPWSAPROTOCOL_INFOW)x, 0, 0), INVALID_SOCKET, WSAEFAULT);
			FAILS(WSASocketA(-1, -1, -1, (LPWSAPROTOCOL_INFOA)x, 0, 0), INVALID_SOCKET, WSAEFAULT);
		}
		CHECK(WPUQueueApc((LPWSATHREADID)x, (LPWSAUSERAPC)(uintptr_t)outputs, 0, &error) == SOCKET_ERROR);
		CHECK(error == WSAEFAULT);
		CHECK(WPUCloseThread((LPWSATHREADID)x, &error) == SOCKET_ERROR && error == WSAEFAULT);
		CHECK(_wtoi((const WCHAR *)x) == 0);
		FAILS(fwprintf(stdout, (const wchar_t *)x), -1, ERROR_INVALID_PARAMETER);
		FAILS(swprintf((wchar_t *)(void *)good, 16, (const wchar_t *)x), -1, ERROR_INVALID_PARAMETER);
		if (x != wrong[3]) { /* three bytes are enough for a narrow string */
			FAILS(snprintf(good, 16, (const char *)x), -1, ERROR_INVALID_PARAMETER);
			FAILS(fprintf(stdout, (const char *)x), -1, ERROR_INVALID_PARAMETER);
		}
	}
	/* No code can be called there. */
	CHECK(WPUOpenCurrentThread(&thread, &error) == 0);
	CHECK(WPUQueueApc(&thread, (LPWSAUSERAPC)(uintptr_t)routine, 0, &error) == SOCKET_ERROR && error == WSAEFAULT);
	CHECK(WPUCloseThread(&thread, &error) == 0);
	if (x) {
		upcalls.lpWPUQueueApc = (LPWPUQUEUEAPC)(uintptr_t)routine;
		CHECK(WSPStartup(MAKEWORD(2, 2), &data, NULL, upcalls, &table) == WSAEFAULT);
	}
	/* These look at no memory, or leave it to the kernel and to whether there is a connection. */
	CHECK(!CancelIoEx((HANDLE)x, (LPOVERLAPPED)x) && !CancelIoEx((HANDLE)s, (LPOVERLAPPED)x) && !CancelIo((HANDLE)x));
	CHECK(!WSASetEvent((WSAEVENT)x) && !WSAResetEvent((WSAEVENT)x) && !WSACloseEvent((WSAEVENT)x));
	CHECK(!SetEvent((HANDLE)x) && !ResetEvent((HANDLE)x) && !CloseHandle((HANDLE)x));
	CHECK(WaitForSingleObject((HANDLE)x, 0) == WAIT_FAILED && WaitForSingleObjectEx((HANDLE)x, 0, TRUE) == WAIT_FAILED);
	if (x)
		CHECK(!CreateEventA(x, TRUE, FALSE, x) && !CreateEventW(x, TRUE, FALSE, (LPCWSTR)x));
	(void)send(s, x, 8, 0);
	(void)sendto(s, x, 8, 0, (struct sockaddr *)x, 16);
	buffer.buf = x;
	(void)WSASend(s, &buffer, 1, &a, 0, NULL, NULL);
	(void)WSASendTo(s, &buffer, 1, &a, 0, (struct sockaddr *)x, 16, NULL, NULL);
	(void)WSARecv(s, &buffer, 1, &a, &b, (LPWSAOVERLAPPED)x, (LPWSAOVERLAPPED_COMPLETION_ROUTINE)(uintptr_t)routine);
	closesocket(s);
}

/* Every function of the provider's table, with wrong pointers in all its positions at once and in lpErrno. */
static void table(char *x)
{
	WSPUPCALLTABLE upcalls;
	WSPDATA data;
	WSPPROC_TABLE t;
	int error = 0, e[2];
	DWORD b = 0;
	LPINT where[2];
	SOCKET s;
	int i;

	memset(&upcalls, 0, sizeof(upcalls));
	CHECK(WSPStartup(MAKEWORD(2, 2), &data, NULL, upcalls, &t) == 0);
	where[0] = &e[0];
	where[1] = (LPINT)x;
	for (i = 0; i < 2; i++) {
		LPINT no = where[i];
		s = t.lpWSPSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED, no);
		CHECK(s != INVALID_SOCKET);
		(void)t.lpWSPAccept(s, (struct sockaddr *)x, (LPINT)x, NULL, 0, no);
		(void)t.lpWSPAddressToString((LPSOCKADDR)x, 16, (LPWSAPROTOCOL_INFOW)x, (LPWSTR)x, (LPDWORD)x, no);
		(void)t.lpWSPAsyncSelect(s, (HWND)x, 0, 0, no);
		(void)t.lpWSPBind(s, (struct sockaddr *)x, 16, no);
		(void)t.lpWSPCancelBlockingCall(no);
		(void)t.lpWSPConnect(s, (struct sockaddr *)x, 16, (LPWSABUF)x, (LPWSABUF)x, (LPQOS)x, (LPQOS)x, no);
		(void)t.lpWSPDuplicateSocket(s, (DWORD)getpid(), (LPWSAPROTOCOL_INFOW)x, no);
		(void)t.lpWSPEnumNetworkEvents(s, (WSAEVENT)x, (LPWSANETWORKEVENTS)x, no);
		(void)t.lpWSPEventSelect(s, (WSAEVENT)x, 0, no);
		(void)t.lpWSPGetOverlappedResult(s, (LPWSAOVERLAPPED)x, (LPDWORD)x, FALSE, (LPDWORD)x, no);
		(void)t.lpWSPGetPeerName(s, (struct sockaddr *)x, (LPINT)x, no);
		(void)t.lpWSPGetSockName(s, (struct sockaddr *)x, (LPINT)x, no);
		(void)t.lpWSPGetSockOpt(s, SOL_SOCKET, SO_TYPE, x, (LPINT)x, no);
		(void)t.lpWSPGetQOSByName(s, (LPWSABUF)x, (LPQOS)x, no);
		(void)t.lpWSPIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, x, 4, x, 16, (LPDWORD)x, (LPWSAOVERLAPPED)x, NULL,
				   (LPWSATHREADID)x, no);
		(void)t.lpWSPJoinLeaf(s, (struct sockaddr *)x, 16, (LPWSABUF)x, (LPWSABUF)x, (LPQOS)x, (LPQOS)x, 0, no);
		(void)t.lpWSPRecv(s, (LPWSABUF)x, 1, (LPDWORD)x, (LPDWORD)x, (LPWSAOVERLAPPED)x, NULL, NULL, no);
		(void)t.lpWSPRecvDisconnect(s, (LPWSABUF)x, no);
		(void)t.lpWSPRecvFrom(s, (LPWSABUF)x, 1, (LPDWORD)x, &b, (struct sockaddr *)x, (LPINT)x, NULL, NULL, NULL, no);
		if (x)
			(void)t.lpWSPSelect(0, (fd_set *)x, NULL, NULL, (struct timeval *)x, no);
		(void)t.lpWSPSend(s, (LPWSABUF)x, 1, (LPDWORD)x, 0, NULL, NULL, NULL, no);
		(void)t.lpWSPSendDisconnect(s, (LPWSABUF)x, no);
		(void)t.lpWSPSendTo(s, (LPWSABUF)x, 1, (LPDWORD)x, 0, (struct sockaddr *)x, 16, NULL, NULL, NULL, no);
		(void)t.lpWSPSetSockOpt(s, SOL_SOCKET, SO_REUSEADDR, x, 4, no);
		(void)t.lpWSPStringToAddress((LPWSTR)x, AF_INET, (LPWSAPROTOCOL_INFOW)x, (LPSOCKADDR)x, (LPINT)x, no);
		(void)t.lpWSPListen(s, 1, no);
		(void)t.lpWSPShutdown(s, SD_BOTH, no);
		CHECK(t.lpWSPCloseSocket(s, no) == 0);
		CHECK(t.lpWSPCloseSocket(s, no) == SOCKET_ERROR);
	}
	CHECK(t.lpWSPCleanup(&error) == 0);
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
	for (way = 0; way < WAYS && !codes_only; way++) {
		outputs(wrong[way]);
		inputs(wrong[way], way == 4 || way == 8);
		table(wrong[way]);
	}
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
