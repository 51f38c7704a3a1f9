/*
 * Overlapped operations, with the real agent: its process id is the argument. While the agent is stopped, requests
 * wait; when it continues, it confirms them. At the end, the test kills it while requests wait. Requests from the pool
 * need no agent.
 */
#include <winsock2.h>
#include <mstcpip.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "check.h"

static pid_t agent;

/* From here on requests outside the pool wait. */
static void agent_stops(void)
{
	CHECK(kill(agent, SIGSTOP) == 0);
}

static void agent_goes_on(void)
{
	CHECK(kill(agent, SIGCONT) == 0);
}

static SOCKET tcp(void)
{
	return socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
}

static INET_PORT_RESERVATION_INSTANCE out;
static WSAOVERLAPPED ov;
static DWORD bytes;

static int start(SOCKET s, int port, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)
{
	INET_PORT_RANGE range;
	range.StartPort = htons((USHORT)port);
	range.NumberOfPorts = 2;
	memset(&out, 0, sizeof(out));
	bytes = 77;
	return WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), &out, sizeof(out), &bytes, &ov, routine);
}

static int calls;
static DWORD last_error, last_bytes;
static pthread_t last_thread;

static void routine(DWORD error, DWORD count, LPWSAOVERLAPPED overlapped, DWORD flags)
{
	calls++;
	last_error = error;
	last_bytes = count;
	last_thread = pthread_self();
	CHECK(overlapped == &ov && flags == 0);
}

static void with_an_event(void)
{
	SOCKET s = tcp();
	DWORD count = 99, flags = 99;

	memset(&ov, 0, sizeof(ov));
	ov.hEvent = WSACreateEvent();
	/* At once. */
	CHECK(start(s, 0, NULL) == 0);
	CHECK(bytes == 16 && out.NumberOfPorts == 2);
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 0, FALSE) == WSA_WAIT_EVENT_0);
	CHECK(WSAGetOverlappedResult(s, &ov, &count, FALSE, &flags) && count == 16 && flags == 0);
	CHECK(release(s, &out) == 0);
	/* Later. */
	agent_stops();
	CHECK_ERROR(start(s, 41000, NULL), WSA_IO_PENDING);
	CHECK(bytes == 77 && !HasOverlappedIoCompleted(&ov));
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 0, FALSE) == WSA_WAIT_TIMEOUT);
	count = 99;
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, FALSE, &flags) && WSAGetLastError() == WSA_IO_INCOMPLETE);
	CHECK(count == 99);
	agent_goes_on();
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 5000, FALSE) == WSA_WAIT_EVENT_0);
	CHECK(WSAGetOverlappedResult(s, &ov, &count, FALSE, &flags) && count == 16);
	CHECK(START_OF(out) == 41000 && out.NumberOfPorts == 2 && HasOverlappedIoCompleted(&ov));
	CHECK(release(s, &out) == 0);
	/* Later, waiting in WSAGetOverlappedResult. */
	agent_stops();
	CHECK_ERROR(start(s, 41010, NULL), WSA_IO_PENDING);
	agent_goes_on();
	CHECK(WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && count == 16 && START_OF(out) == 41010);
	CHECK(release(s, &out) == 0);
	/* Later, and refused: the agent finds a bound socket. */
	SOCKET there = tcp();
	CHECK(bind_port(there, 41021) == 0);
	agent_stops();
	CHECK_ERROR(start(s, 41020, NULL), WSA_IO_PENDING);
	agent_goes_on();
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && WSAGetLastError() == WSAEADDRINUSE);
	CHECK(out.NumberOfPorts == 0);
	closesocket(there);
	/* An error: nothing was started, no completion comes. */
	CHECK(WSAResetEvent(ov.hEvent));
	CHECK_ERROR(start(s, 65535, NULL), WSAEINVAL);
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 50, FALSE) == WSA_WAIT_TIMEOUT);
	CHECK(WSACloseEvent(ov.hEvent));
	CHECK_ERROR(start(s, 0, NULL), WSA_INVALID_HANDLE);
	closesocket(s);
}

static void with_a_routine(void)
{
	SOCKET s = tcp();
	INET_PORT_RESERVATION_INSTANCE block;

	memset(&ov, 0, sizeof(ov));
	calls = 0;
	/* At once, but delivered only in an alertable wait. */
	CHECK(start(s, 0, routine) == 0 && calls == 0);
	Sleep(10);
	CHECK(SleepEx(10, FALSE) == 0 && calls == 0);
	CHECK(SleepEx(1000, TRUE) == WAIT_IO_COMPLETION);
	CHECK(calls == 1 && last_error == 0 && last_bytes == 16 && pthread_equal(last_thread, pthread_self()));
	CHECK(SleepEx(10, TRUE) == 0);
	block = out;
	/* RELEASE and ASSOCIATE too. */
	CHECK(WSAIoctl(s, SIO_RELEASE_PORT_RESERVATION, &block.Token, 8, NULL, 0, &bytes, &ov, routine) == 0);
	CHECK(SleepEx(0, TRUE) == WAIT_IO_COMPLETION && calls == 2 && last_bytes == 0);
	/* Later. */
	agent_stops();
	CHECK_ERROR(start(s, 41020, routine), WSA_IO_PENDING);
	CHECK(SleepEx(20, TRUE) == 0 && calls == 2);
	agent_goes_on();
	CHECK(SleepEx(5000, TRUE) == WAIT_IO_COMPLETION);
	CHECK(calls == 3 && last_error == 0 && START_OF(out) == 41020);
	CHECK(release(s, &out) == 0);
	/* An alertable wait for something else. */
	agent_stops();
	CHECK_ERROR(start(s, 41030, routine), WSA_IO_PENDING);
	agent_goes_on();
	HANDLE event = CreateEvent(NULL, FALSE, FALSE, NULL);
	CHECK(WaitForSingleObjectEx(event, 5000, TRUE) == WAIT_IO_COMPLETION && calls == 4);
	agent_stops();
	CHECK_ERROR(start(s, 41040, routine), WSA_IO_PENDING);
	agent_goes_on();
	CHECK(WSAWaitForMultipleEvents(1, &event, FALSE, 5000, TRUE) == WSA_WAIT_IO_COMPLETION && calls == 5);
	CHECK(CloseHandle(event));
	closesocket(s);
}

static int nested;

static void waits_for_its_sibling(DWORD error, DWORD count, LPWSAOVERLAPPED overlapped, DWORD flags)
{
	(void)error;
	(void)count;
	(void)overlapped;
	(void)flags;
	/* The second one runs inside the first. */
	if (++nested == 1)
		CHECK(SleepEx(5000, TRUE) == WAIT_IO_COMPLETION && nested == 2);
}

static void a_routine_waits_for_another(void)
{
	SOCKET s = tcp();
	INET_PORT_RANGE range = { 0, 1 };
	INET_PORT_RESERVATION_INSTANCE block[2];
	WSAOVERLAPPED each[2];

	memset(each, 0, sizeof(each));
	for (int i = 0; i < 2; i++)
		CHECK(WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), &block[i], sizeof(block[i]), &bytes,
			       &each[i], waits_for_its_sibling) == 0);
	CHECK(SleepEx(5000, TRUE) == WAIT_IO_COMPLETION && nested == 2);
	closesocket(s);
}

/* The ports of a cancelled request are free again: another socket claims it, and has it once the agent goes on. */
static void given_back(int port)
{
	SOCKET s = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	agent_goes_on();
	CHECK(acquire(s, port, 2, &block) == 0 && START_OF(block) == port);
	closesocket(s);
	agent_stops();
}

static void cancelled(void)
{
	SOCKET s = tcp(), other = tcp();
	DWORD count, flags;
	INET_PORT_RESERVATION_INSTANCE block;

	agent_stops();
	memset(&ov, 0, sizeof(ov));
	ov.hEvent = WSACreateEvent();
	WSASetLastError(0);
	CHECK(!CancelIoEx((HANDLE)s, NULL) && WSAGetLastError() == ERROR_NOT_FOUND);
	CHECK_ERROR(start(s, 40000, NULL), WSA_IO_PENDING);
	CHECK_ERROR(acquire(other, 40000, 1, &block), WSAEADDRINUSE);
	CHECK(CancelIoEx((HANDLE)s, &ov));
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 5000, FALSE) == WSA_WAIT_EVENT_0);
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && WSAGetLastError() == WSA_OPERATION_ABORTED);
	CHECK(out.NumberOfPorts == 0);
	given_back(40000);
	/* By closesocket. */
	CHECK_ERROR(start(other, 40000, NULL), WSA_IO_PENDING);
	CHECK(closesocket(other) == 0);
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 5000, FALSE) == WSA_WAIT_EVENT_0);
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, FALSE, &flags) && WSAGetLastError() == WSA_OPERATION_ABORTED);
	given_back(40000);
	/* With a routine. */
	calls = 0;
	CHECK_ERROR(start(s, 40000, routine), WSA_IO_PENDING);
	CHECK(CancelIoEx((HANDLE)s, NULL));
	CHECK(SleepEx(5000, TRUE) == WAIT_IO_COMPLETION && calls == 1 && last_error == WSA_OPERATION_ABORTED);
	CHECK(last_bytes == 0);
	given_back(40000);
	/* Only the one that is meant. */
	WSAOVERLAPPED another;
	memset(&another, 0, sizeof(another));
	CHECK_ERROR(start(s, 40000, NULL), WSA_IO_PENDING);
	CHECK(!CancelIoEx((HANDLE)s, &another) && WSAGetLastError() == ERROR_NOT_FOUND);
	CHECK(!CancelIoEx((HANDLE)0x7ffffff0, NULL) && WSAGetLastError() == ERROR_INVALID_HANDLE);
	CHECK(CancelIo((HANDLE)s));
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && WSAGetLastError() == WSA_OPERATION_ABORTED);
	CHECK(WSACloseEvent(ov.hEvent));
	closesocket(s);
	agent_goes_on();
}

static char *page(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/*
 * The output memory of a request becomes inaccessible while it waits. That is the program's mistake, and must not
 * cause a crash.
 */
static void vanished(void)
{
	SOCKET s = tcp();
	INET_PORT_RANGE range = { htons(40060), 2 };
	char *there = page();
	WSAOVERLAPPED *lost;
	DWORD count, flags;

	memset(&ov, 0, sizeof(ov));
	agent_stops();
	CHECK_ERROR(WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), there, 16, &bytes, &ov, NULL),
		    WSA_IO_PENDING);
	mprotect(there, 4096, PROT_NONE); /* not munmap: another mapping might come there */
	agent_goes_on();
	/* It cannot be reported, so it is given back. */
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && WSAGetLastError() == WSAEFAULT);
	CHECK(acquire(s, 40060, 2, &out) == 0);
	CHECK(release(s, &out) == 0);
	/* The overlapped structure itself. */
	there = page();
	lost = (WSAOVERLAPPED *)(void *)there;
	agent_stops();
	CHECK_ERROR(WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), &out, 16, &bytes, lost, NULL),
		    WSA_IO_PENDING);
	mprotect(there, 4096, PROT_NONE); /* not munmap: another mapping might come there */
	CHECK(CancelIoEx((HANDLE)s, NULL));
	agent_goes_on();
	closesocket(s);
}

static SOCKET shared;

/* The error of a request that is not waited for: WSA_IO_PENDING if it would have to. */
static int acquire_now(SOCKET s, int port, INET_PORT_RESERVATION_INSTANCE *block)
{
	INET_PORT_RANGE range;
	WSAOVERLAPPED overlapped;
	DWORD got, flags;
	int error;
	range.StartPort = htons((USHORT)port);
	range.NumberOfPorts = 2;
	memset(&overlapped, 0, sizeof(overlapped));
	error = WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), block, sizeof(*block), &got, &overlapped,
			 NULL) == 0 ? 0 : WSAGetLastError();
	if (error == WSA_IO_PENDING) {
		CancelIoEx((HANDLE)s, &overlapped);
		WSAGetOverlappedResult(s, &overlapped, &got, TRUE, &flags);
	}
	return error;
}

/*
 * A blocking request. Another thread tries the same ports, to see whether this request waits: it may have the ports
 * just then.
 */
static int acquire_against(SOCKET s, int port, INET_PORT_RESERVATION_INSTANCE *block)
{
	int result;
	while ((result = acquire(s, port, 2, block)) != 0 && WSAGetLastError() == WSAEADDRINUSE)
		Sleep(1);
	return result;
}

static void *start_and_leave(void *unused)
{
	(void)unused;
	CHECK_ERROR(start(shared, 40010, NULL), WSA_IO_PENDING);
	return NULL;
}

static void *cancel_from_outside(void *unused)
{
	(void)unused;
	/* As soon as there is something to cancel. */
	while (!CancelIoEx((HANDLE)shared, NULL))
		Sleep(1);
	return NULL;
}

static void *close_from_outside(void *unused)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET s = tcp();
	(void)unused;
	/* As soon as the other has claimed the ports, and waits. */
	while (acquire_now(s, 40030, &block) != WSAEADDRINUSE)
		Sleep(1);
	CHECK(closesocket(shared) == 0);
	closesocket(s);
	return NULL;
}

static void *go_on_soon(void *unused)
{
	(void)unused;
	usleep(50000);
	agent_goes_on();
	return NULL;
}

static void threads(void)
{
	pthread_t thread;
	DWORD count, flags;
	INET_PORT_RESERVATION_INSTANCE block;

	/* The end of the issuing thread cancels. */
	shared = tcp();
	memset(&ov, 0, sizeof(ov));
	ov.hEvent = WSACreateEvent();
	agent_stops();
	pthread_create(&thread, NULL, start_and_leave, NULL);
	pthread_join(thread, NULL);
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, 5000, FALSE) == WSA_WAIT_EVENT_0);
	CHECK(!WSAGetOverlappedResult(shared, &ov, &count, TRUE, &flags));
	CHECK(WSAGetLastError() == WSA_OPERATION_ABORTED);
	given_back(40010);
	/* A blocking call waits, on a non-blocking socket too, and can be cancelled. */
	u_long yes = 1;
	CHECK(ioctlsocket(shared, FIONBIO, &yes) == 0);
	pthread_create(&thread, NULL, go_on_soon, NULL);
	CHECK(acquire(shared, 41050, 2, &block) == 0 && START_OF(block) == 41050);
	pthread_join(thread, NULL);
	agent_stops();
	pthread_create(&thread, NULL, cancel_from_outside, NULL);
	CHECK_ERROR(acquire(shared, 40020, 2, &block), WSA_OPERATION_ABORTED);
	pthread_join(thread, NULL);
	given_back(40020);
	/* closesocket from elsewhere ends it as well. */
	pthread_create(&thread, NULL, close_from_outside, NULL);
	CHECK_ERROR(acquire_against(shared, 40030, &block), WSA_OPERATION_ABORTED);
	pthread_join(thread, NULL);
	given_back(40030);
	agent_goes_on();
	CHECK(WSACloseEvent(ov.hEvent));
}

static void without_the_attribute(void)
{
	SOCKET s = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, 0);

	memset(&ov, 0, sizeof(ov));
	calls = 0;
	/* It waits for the agent, and gets no answer in the overlapped way. */
	CHECK(start(s, 41060, routine) == 0);
	CHECK(bytes == 16 && START_OF(out) == 41060 && ov.Internal == 0 && ov.InternalHigh == 0);
	CHECK(SleepEx(20, TRUE) == 0 && calls == 0);
	closesocket(s);
	s = WSASocketA(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED);
	agent_stops();
	CHECK_ERROR(start(s, 41060, routine), WSA_IO_PENDING);
	agent_goes_on();
	CHECK(SleepEx(5000, TRUE) == WAIT_IO_COMPLETION && calls == 1);
	closesocket(s);
}

static void events(void)
{
	HANDLE e[2], bad = (HANDLE)8;

	e[0] = CreateEventA(NULL, TRUE, FALSE, NULL);
	e[1] = CreateEventW(NULL, FALSE, TRUE, NULL);
	CHECK(WaitForMultipleObjects(2, e, FALSE, 0) == WAIT_OBJECT_0 + 1);
	CHECK(WaitForMultipleObjects(2, e, FALSE, 0) == WAIT_TIMEOUT);
	CHECK(SetEvent(e[0]) && WaitForMultipleObjects(2, e, TRUE, 10) == WAIT_TIMEOUT);
	CHECK(SetEvent(e[1]) && WaitForMultipleObjects(2, e, TRUE, 10) == WAIT_OBJECT_0);
	CHECK(WaitForSingleObject(e[0], 0) == WAIT_OBJECT_0 && WaitForSingleObject(e[1], 0) == WAIT_TIMEOUT);
	CHECK(ResetEvent(e[0]) && WaitForSingleObject(e[0], 0) == WAIT_TIMEOUT);
	CHECK(WaitForSingleObject(bad, 0) == WAIT_FAILED && GetLastError() == ERROR_INVALID_HANDLE);
	CHECK(WaitForMultipleObjects(0, e, FALSE, 0) == WAIT_FAILED && GetLastError() == ERROR_INVALID_PARAMETER);
	CHECK(WaitForMultipleObjects(65, e, FALSE, 0) == WAIT_FAILED && GetLastError() == ERROR_INVALID_PARAMETER);
	CHECK(CloseHandle(e[0]) && CloseHandle(e[1]) && !CloseHandle(e[1]));
	CHECK(!SetEvent(e[0]) && GetLastError() == ERROR_INVALID_HANDLE);
}

static void *kill_the_agent(void *unused)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET s = tcp();
	(void)unused;
	while (acquire_now(s, 40040, &block) != WSAEADDRINUSE)
		Sleep(1);
	CHECK(kill(agent, SIGKILL) == 0);
	closesocket(s);
	return NULL;
}

/* No request waits for ever. */
static void killed(void)
{
	SOCKET s = tcp(), other = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	DWORD count, flags;
	pthread_t thread;

	agent_stops();
	memset(&ov, 0, sizeof(ov));
	ov.hEvent = WSACreateEvent();
	CHECK_ERROR(start(s, 40050, NULL), WSA_IO_PENDING);
	pthread_create(&thread, NULL, kill_the_agent, NULL);
	CHECK_ERROR(acquire_against(other, 40040, &block), WSAENETDOWN);
	pthread_join(thread, NULL);
	CHECK(WSAWaitForMultipleEvents(1, &ov.hEvent, TRUE, WSA_INFINITE, FALSE) == WSA_WAIT_EVENT_0);
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && WSAGetLastError() == WSAENETDOWN);
	/* From now on requests fail at once. Requests that need no agent work as before. */
	CHECK_ERROR(start(s, 40050, NULL), WSAENETDOWN);
	CHECK(start(s, 0, NULL) == 0);
	CHECK(WSACloseEvent(ov.hEvent));
	closesocket(other);
	closesocket(s);
}

int main(int argc, char **argv)
{
	WSADATA data;

	if (argc != 2)
		return 2;
	agent = (pid_t)atoi(argv[1]);
	alarm(300); /* a call that waits for ever must not hang the tests */
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	with_an_event();
	with_a_routine();
	a_routine_waits_for_another();
	cancelled();
	vanished();
	threads();
	without_the_attribute();
	events();
	killed();
	CHECK(WSACleanup() == 0);
	return failures != 0;
}
