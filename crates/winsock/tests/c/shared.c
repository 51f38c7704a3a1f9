/*
 * Several requests on one socket, in one thread and in many. Each has its own token and its own end, and after its end
 * only the program holds the socket. The argument is the process id of the real agent.
 */
#include <winsock2.h>
#include <mstcpip.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

static pid_t agent;

/* Requests outside the pool wait from here on. */
static void agent_stops(void)
{
	CHECK(kill(agent, SIGSTOP) == 0);
}

static void agent_goes_on(void)
{
	CHECK(kill(agent, SIGCONT) == 0);
}

static SOCKET udp(void)
{
	return socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
}

struct request {
	WSAOVERLAPPED overlapped;
	INET_PORT_RESERVATION_INSTANCE block;
	DWORD bytes;
};

/* The error of the start: WSA_IO_PENDING if the request waits. */
static int start(struct request *request, SOCKET s, int port)
{
	INET_PORT_RANGE range;
	WSAEVENT event = request->overlapped.hEvent;
	range.StartPort = htons((USHORT)port);
	range.NumberOfPorts = 2;
	memset(request, 0, sizeof(*request));
	request->overlapped.hEvent = event;
	return WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), &request->block, sizeof(request->block),
			&request->bytes, &request->overlapped, NULL) == 0 ? 0 : WSAGetLastError();
}

/* The error of the end. */
static int end(struct request *request, SOCKET s)
{
	DWORD bytes, flags;
	return WSAGetOverlappedResult(s, &request->overlapped, &bytes, TRUE, &flags) ? 0 : WSAGetLastError();
}

/* Whether another socket can claim the ports now. The agent decides whether that socket gets them. */
static int claimable(int port)
{
	struct request request = { 0 };
	SOCKET s = udp();
	int error = start(&request, s, port);
	closesocket(s);
	return error == 0 || error == WSA_IO_PENDING;
}

static void the_second_is_cancelled(void)
{
	struct request first = { 0 }, second = { 0 };
	SOCKET s = udp();

	agent_stops();
	CHECK(start(&first, s, 42000) == WSA_IO_PENDING);
	CHECK(start(&second, s, 42010) == WSA_IO_PENDING);
	CHECK(CancelIoEx((HANDLE)s, &second.overlapped));
	CHECK(end(&second, s) == WSA_OPERATION_ABORTED);
	CHECK(claimable(42010));
	/* Meanwhile the layer checks the first request several times. */
	Sleep(20);
	CHECK(!HasOverlappedIoCompleted(&first.overlapped));
	CHECK(!claimable(42000));
	agent_goes_on();
	CHECK(end(&first, s) == 0 && START_OF(first.block) == 42000);
	CHECK(release(s, &first.block) == 0);
	closesocket(s);
}

static void the_second_is_released(void)
{
	struct request first = { 0 };
	INET_PORT_RESERVATION_INSTANCE second;
	SOCKET s = udp();

	agent_stops();
	CHECK(start(&first, s, 42020) == WSA_IO_PENDING);
	CHECK(acquire(s, 0, 2, &second) == 0);
	CHECK(release(s, &second) == 0);
	Sleep(20);
	CHECK(!HasOverlappedIoCompleted(&first.overlapped));
	agent_goes_on();
	CHECK(end(&first, s) == 0 && START_OF(first.block) == 42020);
	closesocket(s);
}

static void the_second_is_refused(void)
{
	struct request first = { 0 }, second = { 0 }, third = { 0 };
	SOCKET s = udp(), there = udp();

	CHECK(bind_port(there, 42041) == 0);
	agent_stops();
	CHECK(start(&first, s, 42030) == WSA_IO_PENDING);
	CHECK(start(&second, s, 42040) == WSA_IO_PENDING);
	CHECK(start(&third, s, 42050) == WSA_IO_PENDING);
	agent_goes_on();
	CHECK(end(&first, s) == 0 && START_OF(first.block) == 42030);
	CHECK(end(&second, s) == WSAEADDRINUSE);
	CHECK(end(&third, s) == 0 && START_OF(third.block) == 42050);
	closesocket(there);
	closesocket(s);
	CHECK(claimable(42030) && claimable(42040) && claimable(42050));
}

static SOCKET keeper;
static volatile int stop;

static void *acquire_and_release_wildcards(void *unused)
{
	(void)unused;
	while (!stop) {
		INET_PORT_RESERVATION_INSTANCE block;
		CHECK(acquire(keeper, 0, 1, &block) == 0);
		CHECK(release(keeper, &block) == 0);
	}
	return NULL;
}

static void *acquire_specific_ports(void *first)
{
	int base = *(int *)first;
	for (int i = 0; i < 50; i++) {
		INET_PORT_RESERVATION_INSTANCE block;
		CHECK(acquire(keeper, base + i, 1, &block) == 0);
		CHECK(START_OF(block) == base + i);
		CHECK(release(keeper, &block) == 0);
	}
	return NULL;
}

static void many_threads_share_a_keeper(void)
{
	pthread_t wildcards[2], specific[2];
	int base[2] = { 43000, 43100 };

	keeper = udp();
	stop = 0;
	for (int i = 0; i < 2; i++)
		pthread_create(&wildcards[i], NULL, acquire_and_release_wildcards, NULL);
	for (int i = 0; i < 2; i++)
		pthread_create(&specific[i], NULL, acquire_specific_ports, &base[i]);
	for (int i = 0; i < 2; i++)
		pthread_join(specific[i], NULL);
	stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(wildcards[i], NULL);
	/* No reservation is left that was not reported to the program. */
	for (int port = 43000; port < 43050; port += 2)
		CHECK(claimable(port) && claimable(port + 100));
	closesocket(keeper);
}

/* Each thread asks for the same ports again and again: closesocket has to have freed them. */
static void *close_after_the_event(void *first)
{
	struct request request = { 0 };
	request.overlapped.hEvent = WSACreateEvent();
	for (int i = 0; i < 200; i++) {
		SOCKET s = udp();
		int error = start(&request, s, *(int *)first);
		CHECK(error == 0 || error == WSA_IO_PENDING);
		if (error == WSA_IO_PENDING)
			CHECK(WSAWaitForMultipleEvents(1, &request.overlapped.hEvent, TRUE, 10000, FALSE) == WSA_WAIT_EVENT_0);
		CHECK(HasOverlappedIoCompleted(&request.overlapped));
		closesocket(s);
	}
	WSACloseEvent(request.overlapped.hEvent);
	return NULL;
}

/* The same without a wait: closesocket finds the request anywhere between its claim and its completion. */
static void *close_at_any_time(void *first)
{
	struct request request = { 0 };
	for (int i = 0; i < 200; i++) {
		SOCKET s = udp(), other = udp();
		int error = start(&request, s, *(int *)first);
		CHECK(error == 0 || error == WSA_IO_PENDING);
		if (error == WSA_IO_PENDING && i % 4)
			usleep((useconds_t)(i % 4) * 60);
		closesocket(s);
		if (error == WSA_IO_PENDING) {
			error = end(&request, other);
			CHECK(error == 0 || error == WSA_OPERATION_ABORTED);
		}
		closesocket(other);
	}
	return NULL;
}

static void in_four_threads(void *(*body)(void *))
{
	pthread_t thread[4];
	int port[4];

	for (int i = 0; i < 4; i++) {
		port[i] = 44000 + 10 * i;
		pthread_create(&thread[i], NULL, body, &port[i]);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
}

static void *wait_in_acquire(void *result)
{
	INET_PORT_RESERVATION_INSTANCE block;
	/* The check whether this call waits may itself have the ports just then. */
	do
		*(int *)result = acquire(keeper, 42060, 2, &block) == 0 ? 0 : WSAGetLastError();
	while (*(int *)result == WSAEADDRINUSE);
	return NULL;
}

/* closesocket ends a call that waits in another thread, and has given its ports back when it returns. */
static void closed_while_another_thread_waits(void)
{
	agent_stops();
	for (int i = 0; i < 50; i++) {
		pthread_t thread;
		int result = -1;
		keeper = udp();
		pthread_create(&thread, NULL, wait_in_acquire, &result);
		while (claimable(42060))
			Sleep(1);
		CHECK(closesocket(keeper) == 0);
		CHECK(claimable(42060));
		pthread_join(thread, NULL);
		CHECK(result == WSA_OPERATION_ABORTED);
	}
	agent_goes_on();
}

int main(int argc, char **argv)
{
	WSADATA data;

	CHECK(argc == 2);
	agent = atoi(argv[1]);
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	the_second_is_cancelled();
	the_second_is_released();
	the_second_is_refused();
	many_threads_share_a_keeper();
	in_four_threads(close_after_the_event);
	in_four_threads(close_at_any_time);
	closed_while_another_thread_waits();
	CHECK(WSACleanup() == 0);
	printf("%d failures\n", failures);
	return failures != 0;
}
