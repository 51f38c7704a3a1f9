/* The layouts of Windows, asserted at compile time. Compiles with Microsoft's headers too. */
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <mstcpip.h>
#include <ws2tcpip.h>
#include <ws2spi.h>
#include <iphlpapi.h>
#include <stddef.h>

#ifdef __cplusplus
#define ASSERT(what) static_assert(what, #what)
#else
#define ASSERT(what) _Static_assert(what, #what)
#endif
#define P sizeof(void *)

ASSERT(SIO_ACQUIRE_PORT_RESERVATION == 0x98000064u);
ASSERT(SIO_RELEASE_PORT_RESERVATION == 0x98000065u);
ASSERT(SIO_ASSOCIATE_PORT_RESERVATION == 0x98000066u);
ASSERT(sizeof(INET_PORT_RANGE) == 4);
ASSERT(offsetof(INET_PORT_RANGE, StartPort) == 0);
ASSERT(offsetof(INET_PORT_RANGE, NumberOfPorts) == 2);
ASSERT(sizeof(INET_PORT_RESERVATION) == 4);
ASSERT(sizeof(INET_PORT_RESERVATION_TOKEN) == 8);
ASSERT(sizeof(INET_PORT_RESERVATION_INSTANCE) == 16);
ASSERT(sizeof(((INET_PORT_RESERVATION_INSTANCE *)0)->Token) == 8);
ASSERT(offsetof(INET_PORT_RESERVATION_INSTANCE, Token) == 8);
ASSERT(INVALID_PORT_RESERVATION_TOKEN == 0);

ASSERT(sizeof(WSAOVERLAPPED) == 3 * P + 8);
ASSERT(offsetof(WSAOVERLAPPED, Internal) == 0);
ASSERT(offsetof(WSAOVERLAPPED, InternalHigh) == P);
ASSERT(offsetof(WSAOVERLAPPED, hEvent) == 2 * P + 8);
ASSERT(sizeof(WSATHREADID) == 2 * P);
ASSERT(sizeof(WSAPOLLFD) == (P == 8 ? 16 : 8));
ASSERT(sizeof(WSABUF) == 2 * P);
ASSERT(offsetof(WSABUF, buf) == P);
ASSERT(sizeof(WSADATA) == (P == 8 ? 408 : 400));
ASSERT(sizeof(WSAPROTOCOL_INFOA) == 372);
ASSERT(sizeof(WSPPROC_TABLE) == 30 * P);
ASSERT(offsetof(WSPPROC_TABLE, lpWSPIoctl) == 16 * P);
ASSERT(sizeof(WSPUPCALLTABLE) == 15 * P);
ASSERT(offsetof(WSPUPCALLTABLE, lpWPUQueueApc) == 10 * P);

ASSERT(sizeof(SOCKET) == P && (SOCKET)-1 > 0);
ASSERT(sizeof(HANDLE) == P);
ASSERT(sizeof(DWORD) == 4 && sizeof(LONG) == 4 && sizeof(WORD) == 2 && sizeof(ULONG64) == 8 && sizeof(BOOL) == 4);
ASSERT(offsetof(fd_set, fd_array) == P);

ASSERT(WSA_INVALID_HANDLE == 6 && WSA_NOT_ENOUGH_MEMORY == 8 && WSA_INVALID_PARAMETER == 87);
ASSERT(WSA_OPERATION_ABORTED == 995 && WSA_IO_INCOMPLETE == 996 && WSA_IO_PENDING == 997);
ASSERT(WSAEINTR == 10004 && WSAEACCES == 10013 && WSAEFAULT == 10014 && WSAEINVAL == 10022);
ASSERT(WSAEWOULDBLOCK == 10035 && WSAEINPROGRESS == 10036 && WSAENOTSOCK == 10038 && WSAENOPROTOOPT == 10042);
ASSERT(WSAEOPNOTSUPP == 10045 && WSAEADDRINUSE == 10048 && WSAEADDRNOTAVAIL == 10049 && WSAENETDOWN == 10050);
ASSERT(WSAENOBUFS == 10055 && WSANOTINITIALISED == 10093);
ASSERT(ERROR_ACCESS_DENIED == 5 && ERROR_SHARING_VIOLATION == 32 && ERROR_NOT_FOUND == 1168);
ASSERT(WSA_WAIT_TIMEOUT == 258 && WSA_WAIT_IO_COMPLETION == 0xc0 && WSA_WAIT_FAILED == 0xffffffffu);
ASSERT(MAKEWORD(2, 2) == 0x0202);

int main(void)
{
	return 0;
}
