/*
 * Makes one 32-bit system call and prints its result. Built with -m32 it is a 32-bit program; built with -m64 it is a
 * 64-bit one that uses the 32-bit entry (int 0x80). Static and not position-independent, so that all addresses fit.
 */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Numbers of the 32-bit system calls on x86. */
enum { SOCKET = 359, BIND = 361, GETSOCKOPT = 365, SETSOCKOPT = 366 };

static long call(long number, long a, long b, long c, long d, long e)
{
	long result;

	asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
	return (int)result;
}

static struct sockaddr_in address;
static unsigned char buffer[64];
static int zero, length = sizeof(buffer);

int main(int count, char **words)
{
	const char *what = count > 1 ? words[1] : "";
	int number = count > 2 ? atoi(words[2]) : 0;
	long socket = call(SOCKET, AF_INET, SOCK_STREAM, 0, 0, 0), result;

	if (socket < 0)
		return 1;
	if (!strcmp(what, "acquire")) {
		buffer[2] = 1; /* one port, any */
		result = call(SETSOCKOPT, socket, 0x504b, 100, (long)buffer, 16);
	} else if (!strcmp(what, "version")) {
		result = call(GETSOCKOPT, socket, 0x504b, number, (long)buffer, (long)&length);
	} else if (!strcmp(what, "bind")) {
		address.sin_family = AF_INET;
		address.sin_port = htons(number);
		result = call(BIND, socket, (long)&address, sizeof(address), 0, 0);
	} else if (!strcmp(what, "clear")) {
		result = call(SETSOCKOPT, number, SOL_SOCKET, SO_REUSEADDR, (long)&zero, sizeof(zero));
	} else {
		return 1;
	}
	printf("%ld\n", -result);
	return 0;
}
