/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Winsock on the system's own sockets. A SOCKET is the descriptor's number.
 *
 * Some functions are in libc, too. They get their Winsock types here, and by an assembler label another symbol. So no
 * name is redefined: a method called connect keeps its name, and socket() in other code is still libc's. For that, the
 * system's declarations must come through this header first.
 */
#ifndef PORTKEEP_WINSOCK2_H
#define PORTKEEP_WINSOCK2_H

#ifdef _SYS_SOCKET_H
#error "include <winsock2.h> before <sys/socket.h> and what includes that"
#endif

#ifdef FD_SETSIZE
enum { PORTKEEP_FD_SETSIZE = FD_SETSIZE };
#else
enum { PORTKEEP_FD_SETSIZE = 64 };
#endif

#ifndef WIN32_LEAN_AND_MEAN
/* windows.h would include this header, which is being included. */
#define WIN32_LEAN_AND_MEAN
#include "windows.h"
#undef WIN32_LEAN_AND_MEAN
#else
#include "windows.h"
#endif

#include <sys/select.h>
#include <sys/types.h>
#include <unistd.h>
#define socket portkeep_system_socket
#define bind portkeep_system_bind
#define connect portkeep_system_connect
#define listen portkeep_system_listen
#define accept portkeep_system_accept
#define getsockname portkeep_system_getsockname
#define getpeername portkeep_system_getpeername
#define getsockopt portkeep_system_getsockopt
#define setsockopt portkeep_system_setsockopt
#define shutdown portkeep_system_shutdown
#define send portkeep_system_send
#define sendto portkeep_system_sendto
#define recv portkeep_system_recv
#define recvfrom portkeep_system_recvfrom
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#undef socket
#undef bind
#undef connect
#undef listen
#undef accept
#undef getsockname
#undef getpeername
#undef getsockopt
#undef setsockopt
#undef shutdown
#undef send
#undef sendto
#undef recv
#undef recvfrom

typedef UINT_PTR SOCKET;
typedef unsigned int GROUP;
#define INVALID_SOCKET ((SOCKET)(~0))
#define SOCKET_ERROR (-1)

typedef struct sockaddr SOCKADDR, *PSOCKADDR, *LPSOCKADDR;
typedef struct sockaddr_in SOCKADDR_IN, *PSOCKADDR_IN, *LPSOCKADDR_IN;
typedef struct sockaddr_storage SOCKADDR_STORAGE, *PSOCKADDR_STORAGE;
typedef struct in_addr IN_ADDR, *PIN_ADDR;
typedef struct hostent HOSTENT, *PHOSTENT, *LPHOSTENT;
typedef struct timeval TIMEVAL, *PTIMEVAL, *LPTIMEVAL;
typedef struct linger LINGER, *LPLINGER;
typedef sa_family_t ADDRESS_FAMILY;
typedef struct _SOCKET_ADDRESS {
	LPSOCKADDR lpSockaddr;
	INT iSockaddrLength;
} SOCKET_ADDRESS, *PSOCKET_ADDRESS, *LPSOCKET_ADDRESS;

#define SD_RECEIVE SHUT_RD
#define SD_SEND SHUT_WR
#define SD_BOTH SHUT_RDWR

#define SO_EXCLUSIVEADDRUSE ((int)(~SO_REUSEADDR))
#define SO_DONTLINGER ((int)(~SO_LINGER))

/* Both these numbers and those of <sys/ioctl.h> are understood. */
#ifndef FIONBIO
#define FIONBIO ((long)0x8004667e)
#endif
#ifndef FIONREAD
#define FIONREAD ((long)0x4004667f)
#endif

/* Errors. WSAGetLastError and GetLastError are one value per thread. */
#define WSA_INVALID_HANDLE ERROR_INVALID_HANDLE
#define WSA_NOT_ENOUGH_MEMORY ERROR_NOT_ENOUGH_MEMORY
#define WSA_INVALID_PARAMETER ERROR_INVALID_PARAMETER
#define WSA_OPERATION_ABORTED ERROR_OPERATION_ABORTED
#define WSA_IO_INCOMPLETE ERROR_IO_INCOMPLETE
#define WSA_IO_PENDING ERROR_IO_PENDING
#define WSAEINTR 10004
#define WSAEBADF 10009
#define WSAEACCES 10013
#define WSAEFAULT 10014
#define WSAEINVAL 10022
#define WSAEMFILE 10024
#define WSAEWOULDBLOCK 10035
#define WSAEINPROGRESS 10036
#define WSAEALREADY 10037
#define WSAENOTSOCK 10038
#define WSAEDESTADDRREQ 10039
#define WSAEMSGSIZE 10040
#define WSAEPROTOTYPE 10041
#define WSAENOPROTOOPT 10042
#define WSAEPROTONOSUPPORT 10043
#define WSAESOCKTNOSUPPORT 10044
#define WSAEOPNOTSUPP 10045
#define WSAEPFNOSUPPORT 10046
#define WSAEAFNOSUPPORT 10047
#define WSAEADDRINUSE 10048
#define WSAEADDRNOTAVAIL 10049
#define WSAENETDOWN 10050
#define WSAENETUNREACH 10051
#define WSAENETRESET 10052
#define WSAECONNABORTED 10053
#define WSAECONNRESET 10054
#define WSAENOBUFS 10055
#define WSAEISCONN 10056
#define WSAENOTCONN 10057
#define WSAESHUTDOWN 10058
#define WSAETIMEDOUT 10060
#define WSAECONNREFUSED 10061
#define WSAELOOP 10062
#define WSAENAMETOOLONG 10063
#define WSAENOTEMPTY 10066
#define WSAEPROCLIM 10067
#define WSAEUSERS 10068
#define WSAEDQUOT 10069
#define WSAESTALE 10070
#define WSAEREMOTE 10071
#define WSAETOOMANYREFS 10059
#define WSAEHOSTDOWN 10064
#define WSAEHOSTUNREACH 10065
#define WSASYSNOTREADY 10091
#define WSAVERNOTSUPPORTED 10092
#define WSANOTINITIALISED 10093
#define WSASYSCALLFAILURE 10107
#define WSAEDISCON 10101
#define WSAENOMORE 10102
#define WSAECANCELLED 10103
#define WSAEINVALIDPROCTABLE 10104
#define WSAEINVALIDPROVIDER 10105
#define WSAEPROVIDERFAILEDINIT 10106
#define WSASERVICE_NOT_FOUND 10108
#define WSATYPE_NOT_FOUND 10109
#define WSA_E_NO_MORE 10110
#define WSA_E_CANCELLED 10111
#define WSAEREFUSED 10112
#define WSAHOST_NOT_FOUND 11001
#define WSATRY_AGAIN 11002
#define WSANO_RECOVERY 11003
#define WSANO_DATA 11004

#define WSADESCRIPTION_LEN 256
#define WSASYS_STATUS_LEN 128
typedef struct WSAData {
	WORD wVersion;
	WORD wHighVersion;
#if UINTPTR_MAX > 0xffffffffu
	unsigned short iMaxSockets;
	unsigned short iMaxUdpDg;
	char *lpVendorInfo;
#endif
	char szDescription[WSADESCRIPTION_LEN + 1];
	char szSystemStatus[WSASYS_STATUS_LEN + 1];
#if UINTPTR_MAX == 0xffffffffu
	unsigned short iMaxSockets;
	unsigned short iMaxUdpDg;
	char *lpVendorInfo;
#endif
} WSADATA, *LPWSADATA;

typedef struct _WSABUF {
	ULONG len;
	CHAR *buf;
} WSABUF, *LPWSABUF;

#define WSAEVENT HANDLE
typedef WSAEVENT *LPWSAEVENT;
#define WSA_INVALID_EVENT ((WSAEVENT)NULL)
#define WSA_MAXIMUM_WAIT_EVENTS MAXIMUM_WAIT_OBJECTS
#define WSA_WAIT_FAILED WAIT_FAILED
#define WSA_WAIT_EVENT_0 WAIT_OBJECT_0
#define WSA_WAIT_IO_COMPLETION WAIT_IO_COMPLETION
#define WSA_WAIT_TIMEOUT WAIT_TIMEOUT
#define WSA_INFINITE INFINITE

#define WSAOVERLAPPED OVERLAPPED
typedef struct _OVERLAPPED *LPWSAOVERLAPPED;
typedef void (*LPWSAOVERLAPPED_COMPLETION_ROUTINE)(DWORD dwError, DWORD cbTransferred, LPWSAOVERLAPPED lpOverlapped,
						   DWORD dwFlags);

#define WSA_FLAG_OVERLAPPED 0x01
#define WSA_FLAG_NO_HANDLE_INHERIT 0x80
#define FROM_PROTOCOL_INFO (-1)
#define WSAPROTOCOL_LEN 255
#define MAX_PROTOCOL_CHAIN 7

typedef struct _WSAPROTOCOLCHAIN {
	int ChainLen;
	DWORD ChainEntries[MAX_PROTOCOL_CHAIN];
} WSAPROTOCOLCHAIN;

#define PORTKEEP_PROTOCOL_INFO        \
	DWORD dwServiceFlags1;        \
	DWORD dwServiceFlags2;        \
	DWORD dwServiceFlags3;        \
	DWORD dwServiceFlags4;        \
	DWORD dwProviderFlags;        \
	GUID ProviderId;              \
	DWORD dwCatalogEntryId;       \
	WSAPROTOCOLCHAIN ProtocolChain; \
	int iVersion;                 \
	int iAddressFamily;           \
	int iMaxSockAddr;             \
	int iMinSockAddr;             \
	int iSocketType;              \
	int iProtocol;                \
	int iProtocolMaxOffset;       \
	int iNetworkByteOrder;        \
	int iSecurityScheme;          \
	DWORD dwMessageSize;          \
	DWORD dwProviderReserved;

typedef struct _WSAPROTOCOL_INFOA {
	PORTKEEP_PROTOCOL_INFO
	CHAR szProtocol[WSAPROTOCOL_LEN + 1];
} WSAPROTOCOL_INFOA, *LPWSAPROTOCOL_INFOA;

typedef struct _WSAPROTOCOL_INFOW {
	PORTKEEP_PROTOCOL_INFO
	WCHAR szProtocol[WSAPROTOCOL_LEN + 1];
} WSAPROTOCOL_INFOW, *LPWSAPROTOCOL_INFOW;

/* Quality of service does not exist here. */
typedef struct _flowspec_of_winsock *LPQOS;
typedef int (*LPCONDITIONPROC)(LPWSABUF, LPWSABUF, LPQOS, LPQOS, LPWSABUF, LPWSABUF, GROUP *, DWORD_PTR);

typedef struct pollfd_of_winsock {
	SOCKET fd;
	SHORT events;
	SHORT revents;
} WSAPOLLFD, *LPWSAPOLLFD;

/*
 * Sets of sockets are Winsock's: a count and an array. The first argument of
 * select is ignored. Only the names are macros, because the system's are taken.
 */
#undef FD_SETSIZE
#undef FD_ZERO
#undef FD_SET
#undef FD_CLR
#undef FD_ISSET
#define FD_SETSIZE PORTKEEP_FD_SETSIZE
typedef struct portkeep_fd_set {
	u_int fd_count;
	SOCKET fd_array[FD_SETSIZE];
} portkeep_fd_set, *LPFD_SET;
#define fd_set portkeep_fd_set

static inline void portkeep_fd_add(SOCKET s, portkeep_fd_set *set)
{
	u_int i = 0;
	while (i < set->fd_count && set->fd_array[i] != s)
		i++;
	if (i == set->fd_count && i < (u_int)FD_SETSIZE) {
		set->fd_array[i] = s;
		set->fd_count++;
	}
}

static inline void portkeep_fd_remove(SOCKET s, portkeep_fd_set *set)
{
	u_int i = 0;
	while (i < set->fd_count && set->fd_array[i] != s)
		i++;
	if (i < set->fd_count) {
		for (; i + 1 < set->fd_count; i++)
			set->fd_array[i] = set->fd_array[i + 1];
		set->fd_count--;
	}
}

#define FD_ZERO(set) ((set)->fd_count = 0)
#define FD_SET(s, set) portkeep_fd_add((s), (set))
#define FD_CLR(s, set) portkeep_fd_remove((s), (set))
#define FD_ISSET(s, set) __WSAFDIsSet((s), (set))
/* With any number of arguments, so that methods called select build. */
#define select(...) portkeep_ws_select(__VA_ARGS__)

PORTKEEP_BEGIN
int __WSAFDIsSet(SOCKET s, portkeep_fd_set *set);
int portkeep_ws_select(int n, portkeep_fd_set *reading, portkeep_fd_set *writing, portkeep_fd_set *failing,
		       const struct timeval *timeout);

int WSAStartup(WORD wVersionRequested, LPWSADATA lpWSAData);
int WSACleanup(void);
int WSAGetLastError(void);
void WSASetLastError(int iError);

SOCKET socket(int af, int type, int protocol) __asm__("portkeep_ws_socket");
int bind(SOCKET s, const struct sockaddr *name, int namelen) __asm__("portkeep_ws_bind");
int connect(SOCKET s, const struct sockaddr *name, int namelen) __asm__("portkeep_ws_connect");
int listen(SOCKET s, int backlog) __asm__("portkeep_ws_listen");
SOCKET accept(SOCKET s, struct sockaddr *addr, int *addrlen) __asm__("portkeep_ws_accept");
int getsockname(SOCKET s, struct sockaddr *name, int *namelen) __asm__("portkeep_ws_getsockname");
int getpeername(SOCKET s, struct sockaddr *name, int *namelen) __asm__("portkeep_ws_getpeername");
int getsockopt(SOCKET s, int level, int optname, char *optval, int *optlen) __asm__("portkeep_ws_getsockopt");
int setsockopt(SOCKET s, int level, int optname, const char *optval, int optlen) __asm__("portkeep_ws_setsockopt");
int shutdown(SOCKET s, int how) __asm__("portkeep_ws_shutdown");
int send(SOCKET s, const char *buf, int len, int flags) __asm__("portkeep_ws_send");
int sendto(SOCKET s, const char *buf, int len, int flags, const struct sockaddr *to, int tolen)
	__asm__("portkeep_ws_sendto");
int recv(SOCKET s, char *buf, int len, int flags) __asm__("portkeep_ws_recv");
int recvfrom(SOCKET s, char *buf, int len, int flags, struct sockaddr *from, int *fromlen)
	__asm__("portkeep_ws_recvfrom");
int closesocket(SOCKET s);
int ioctlsocket(SOCKET s, long cmd, u_long *argp);

SOCKET WSASocketA(int af, int type, int protocol, LPWSAPROTOCOL_INFOA lpProtocolInfo, GROUP g, DWORD dwFlags);
SOCKET WSASocketW(int af, int type, int protocol, LPWSAPROTOCOL_INFOW lpProtocolInfo, GROUP g, DWORD dwFlags);
int WSADuplicateSocketA(SOCKET s, DWORD dwProcessId, LPWSAPROTOCOL_INFOA lpProtocolInfo);
int WSADuplicateSocketW(SOCKET s, DWORD dwProcessId, LPWSAPROTOCOL_INFOW lpProtocolInfo);
int WSAIoctl(SOCKET s, DWORD dwIoControlCode, LPVOID lpvInBuffer, DWORD cbInBuffer, LPVOID lpvOutBuffer,
	     DWORD cbOutBuffer, LPDWORD lpcbBytesReturned, LPWSAOVERLAPPED lpOverlapped,
	     LPWSAOVERLAPPED_COMPLETION_ROUTINE lpCompletionRoutine);
/* With a condition the call fails with WSAEOPNOTSUPP. */
SOCKET WSAAccept(SOCKET s, struct sockaddr *addr, LPINT addrlen, LPCONDITIONPROC lpfnCondition,
		 DWORD_PTR dwCallbackData);
/* The data and the quality of service are ignored. */
int WSAConnect(SOCKET s, const struct sockaddr *name, int namelen, LPWSABUF lpCallerData, LPWSABUF lpCalleeData,
	       LPQOS lpSQOS, LPQOS lpGQOS);
int WSAHtonl(SOCKET s, u_long hostlong, u_long *lpnetlong);
int WSAHtons(SOCKET s, u_short hostshort, u_short *lpnetshort);
int WSANtohl(SOCKET s, u_long netlong, u_long *lphostlong);
int WSANtohs(SOCKET s, u_short netshort, u_short *lphostshort);
BOOL WSAGetOverlappedResult(SOCKET s, LPWSAOVERLAPPED lpOverlapped, LPDWORD lpcbTransfer, BOOL fWait,
			    LPDWORD lpdwFlags);
/* With an overlapped structure these four fail with WSAEOPNOTSUPP: only control codes are overlapped here. */
int WSASend(SOCKET s, LPWSABUF lpBuffers, DWORD dwBufferCount, LPDWORD lpNumberOfBytesSent, DWORD dwFlags,
	    LPWSAOVERLAPPED lpOverlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE lpCompletionRoutine);
int WSASendTo(SOCKET s, LPWSABUF lpBuffers, DWORD dwBufferCount, LPDWORD lpNumberOfBytesSent, DWORD dwFlags,
	      const struct sockaddr *lpTo, int iTolen, LPWSAOVERLAPPED lpOverlapped,
	      LPWSAOVERLAPPED_COMPLETION_ROUTINE lpCompletionRoutine);
int WSARecv(SOCKET s, LPWSABUF lpBuffers, DWORD dwBufferCount, LPDWORD lpNumberOfBytesRecvd, LPDWORD lpFlags,
	    LPWSAOVERLAPPED lpOverlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE lpCompletionRoutine);
int WSARecvFrom(SOCKET s, LPWSABUF lpBuffers, DWORD dwBufferCount, LPDWORD lpNumberOfBytesRecvd, LPDWORD lpFlags,
		struct sockaddr *lpFrom, int *lpFromlen, LPWSAOVERLAPPED lpOverlapped,
		LPWSAOVERLAPPED_COMPLETION_ROUTINE lpCompletionRoutine);
int WSAPoll(LPWSAPOLLFD fdArray, ULONG fds, INT timeout);

WSAEVENT WSACreateEvent(void);
BOOL WSASetEvent(WSAEVENT hEvent);
BOOL WSAResetEvent(WSAEVENT hEvent);
BOOL WSACloseEvent(WSAEVENT hEvent);
DWORD WSAWaitForMultipleEvents(DWORD cEvents, const WSAEVENT *lphEvents, BOOL fWaitAll, DWORD dwTimeout,
			       BOOL fAlertable);
PORTKEEP_END

#ifdef UNICODE
#define WSAPROTOCOL_INFO WSAPROTOCOL_INFOW
#define LPWSAPROTOCOL_INFO LPWSAPROTOCOL_INFOW
#define WSASocket WSASocketW
#define WSADuplicateSocket WSADuplicateSocketW
#else
#define WSAPROTOCOL_INFO WSAPROTOCOL_INFOA
#define LPWSAPROTOCOL_INFO LPWSAPROTOCOL_INFOA
#define WSASocket WSASocketA
#define WSADuplicateSocket WSADuplicateSocketA
#endif

#include "ws2def.h"

#endif
