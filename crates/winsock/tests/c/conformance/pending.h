/* Requests that wait, because the agent does not answer. */

#ifndef _WIN32
static WSAOVERLAPPED ov;
static INET_PORT_RESERVATION_INSTANCE waited_for;
static DWORD count, flags;

static int begin(SOCKET s)
{
	INET_PORT_RANGE range = { htons(5200), 4 };
	memset(&ov, 0, sizeof(ov));
	return WSAIoctl(s, A, &range, sizeof(range), &waited_for, sizeof(waited_for), &count, &ov, NULL);
}

/* The request has ended with this error, and another socket can have its ports. */
static void has_ended(SOCKET s, int error)
{
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, TRUE, &flags) && WSAGetLastError() == error);
}

static void pending(void)
{
	SOCKET s = tcp(), other = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	CHECK(!HasOverlappedIoCompleted(&ov));
	CHECK_ERROR(acquire(other, 5203, 1, &block), WSAEADDRINUSE);
	CHECK(CancelIoEx((HANDLE)s, &ov));
	closesocket(other);
	closesocket(s);
}

static void incomplete(void)
{
	SOCKET s = tcp();
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	CHECK(!WSAGetOverlappedResult(s, &ov, &count, FALSE, &flags) && WSAGetLastError() == WSA_IO_INCOMPLETE);
	CHECK(CancelIoEx((HANDLE)s, &ov));
	closesocket(s);
}

static void cancelled(void)
{
	SOCKET s = tcp();
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	CHECK(CancelIoEx((HANDLE)s, &ov));
	has_ended(s, WSA_OPERATION_ABORTED);
	CHECK(!CancelIoEx((HANDLE)s, &ov) && WSAGetLastError() == ERROR_NOT_FOUND);
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	CHECK(CancelIoEx((HANDLE)s, NULL));
	closesocket(s);
}

static void closed_under_it(void)
{
	SOCKET s = tcp(), other = tcp();
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	CHECK(closesocket(s) == 0);
	has_ended(other, WSA_OPERATION_ABORTED);
	CHECK_ERROR(begin(other), WSA_IO_PENDING);
	closesocket(other);
}

static void flushed(void)
{
	SOCKET s = tcp();
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	CHECK(WSAIoctl(s, SIO_FLUSH, NULL, 0, NULL, 0, &count, NULL, NULL) == 0);
	has_ended(s, WSA_OPERATION_ABORTED);
	closesocket(s);
}

static void *begin_and_leave(void *argument)
{
	CHECK_ERROR(begin(*(SOCKET *)argument), WSA_IO_PENDING);
	return NULL;
}

static void thread_exit(void)
{
	SOCKET s = tcp();
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, begin_and_leave, &s) == 0);
	pthread_join(thread, NULL);
	has_ended(s, WSA_OPERATION_ABORTED);
	closesocket(s);
}

static SOCKET blocked;
static pthread_t the_blocked;
static volatile int still_blocked;

static void *cancel_when_blocked(void *unused)
{
	(void)unused;
	while (!CancelIoEx((HANDLE)blocked, NULL))
		Sleep(1);
	return NULL;
}

static void cancelled_while_blocking(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	pthread_t thread;
	u_long yes = 1;
	blocked = tcp();
	/* A non-blocking socket blocks as well. */
	CHECK(ioctlsocket(blocked, FIONBIO, &yes) == 0);
	CHECK(pthread_create(&thread, NULL, cancel_when_blocked, NULL) == 0);
	CHECK_ERROR(acquire(blocked, 5200, 4, &block), WSA_OPERATION_ABORTED);
	pthread_join(thread, NULL);
	CHECK_ERROR(begin(blocked), WSA_IO_PENDING);
	closesocket(blocked);
}

static void nothing(int number)
{
	(void)number;
}

static void *interrupt(void *unused)
{
	(void)unused;
	while (still_blocked) {
		Sleep(1);
		pthread_kill(the_blocked, SIGUSR1);
	}
	return NULL;
}

static void interrupted(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	struct sigaction action;
	pthread_t thread;
	SOCKET s = tcp();
	memset(&action, 0, sizeof(action));
	action.sa_handler = nothing;
	sigaction(SIGUSR1, &action, NULL);
	the_blocked = pthread_self();
	still_blocked = 1;
	CHECK(pthread_create(&thread, NULL, interrupt, NULL) == 0);
	CHECK_ERROR(acquire(s, 5200, 4, &block), WSAEINTR);
	still_blocked = 0;
	pthread_join(thread, NULL);
	/* Nothing is kept. */
	CHECK_ERROR(begin(s), WSA_IO_PENDING);
	closesocket(s);
}
#endif

static int ran;
static SOCKET for_the_routine;

static void CALLBACK routine(DWORD error, DWORD bytes, LPWSAOVERLAPPED overlapped, DWORD dwFlags)
{
	INET_PORT_RESERVATION_INSTANCE block;
	(void)overlapped;
	CHECK(error == 0 && bytes == 16 && dwFlags == 0);
	CHECK(acquire(for_the_routine, 0, 1, &block) == 0);
	ran++;
}

static void a_routine_may_call(void)
{
	INET_PORT_RANGE range = { 0, 2 };
	INET_PORT_RESERVATION_INSTANCE block;
	WSAOVERLAPPED overlapped;
	DWORD bytes;
	memset(&overlapped, 0, sizeof(overlapped));
	for_the_routine = tcp();
	CHECK(WSAIoctl(for_the_routine, A, &range, sizeof(range), &block, sizeof(block), &bytes, &overlapped, routine) == 0);
	CHECK(SleepEx(1000, TRUE) == WAIT_IO_COMPLETION && ran == 1);
	closesocket(for_the_routine);
}

static void bad_event(void)
{
	INET_PORT_RANGE range = { 0, 2 };
	INET_PORT_RESERVATION_INSTANCE block;
	WSAOVERLAPPED overlapped;
	DWORD bytes;
	SOCKET s = tcp();
	memset(&overlapped, 0, sizeof(overlapped));
	overlapped.hEvent = (HANDLE)4711;
	CHECK_ERROR(WSAIoctl(s, A, &range, sizeof(range), &block, sizeof(block), &bytes, &overlapped, NULL),
		    WSA_INVALID_HANDLE);
	closesocket(s);
}
