/*
 * The declarations and calls of Windows programs around port reservations: annotations, the small types, messages. Compiles as
 * C and as C++.
 */
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>
#include <iphlpapi.h>
#include <sal.h>
#include <stdlib.h>
#include <string.h>
#include <tchar.h>
#include "check.h"

/* In the style of helper files: annotated, one exit, a result for each call. */
_Success_(return == NO_ERROR)
static UINT32 acquire_block(_In_ SOCKET s, _In_ UINT16 first, _In_ UINT16 count, _Out_ UINT64 *token)
{
	UINT32 status = NO_ERROR;
	INET_PORT_RANGE range;
	INET_PORT_RESERVATION_INSTANCE block;
	DWORD bytes = 0;

	ZeroMemory(&range, sizeof(range));
	ZeroMemory(&block, sizeof(block));
	range.StartPort = htons(first);
	range.NumberOfPorts = count;
	if (WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), &block, sizeof(block), &bytes, NULL, NULL) ==
	    SOCKET_ERROR)
		status = (UINT32)WSAGetLastError();
	else
#ifdef __cplusplus
		*token = block.Token.Token;
#else
		*token = block.Token;
#endif
	return status;
}

static void messages(IN DWORD code, OUT OPTIONAL LPTSTR *copy)
{
	LPTSTR text = NULL;
	char small[4];
	DWORD length = FormatMessage(FORMAT_MESSAGE_ALLOCATE_BUFFER | FORMAT_MESSAGE_FROM_SYSTEM |
					     FORMAT_MESSAGE_IGNORE_INSERTS,
				     NULL, code, MAKELANGID(LANG_NEUTRAL, SUBLANG_DEFAULT), (LPTSTR)&text, 0, NULL);

	UNREFERENCED_PARAMETER(copy);
	CHECK(length > 2 && text != NULL && strlen(text) == length && !strcmp(text + length - 2, "\r\n"));
	CHECK(LocalFree(text) == NULL);
	CHECK(FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM, NULL, code, 0, small, _countof(small), NULL) == 0);
	CHECK(GetLastError() == ERROR_INSUFFICIENT_BUFFER);
	WCHAR wide[MAX_PATH];
	CHECK(FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM, NULL, code, 0, wide, MAX_PATH, NULL) == length);
	CHECK(wide[length] == 0);
	CHECK(FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM, NULL, 424242, 0, small, 4, NULL) == 0);
	CHECK(GetLastError() == ERROR_MR_MID_NOT_FOUND);
	CHECK(FormatMessageA(FORMAT_MESSAGE_FROM_STRING, "x", 0, 0, small, 4, NULL) == 0);
	CHECK(GetLastError() == ERROR_INVALID_PARAMETER);
}

static void addresses(void)
{
	struct sockaddr_in name;
	struct sockaddr_in6 name6;
	SOCKET s = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP), s6 = socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP);

	memset(&name, 0, sizeof(name));
	memset(&name6, 0, sizeof(name6));
	name.sin_family = AF_INET;
	CHECK_ERROR(bind(s, (SOCKADDR *)&name, 8), WSAEFAULT);
	CHECK_ERROR(connect(s, (SOCKADDR *)&name, 8), WSAEFAULT);
	name.sin_family = 99;
	CHECK_ERROR(bind(s, (SOCKADDR *)&name, sizeof(name)), WSAEFAULT);
	name.sin_family = AF_INET;
	CHECK(bind(s, (SOCKADDR *)&name, sizeof(name)) == 0);
	/* Bound already. */
	CHECK_ERROR(bind(s, (SOCKADDR *)&name, sizeof(name)), WSAEINVAL);
	/* The number that Windows has for AF_INET6. */
	name6.sin6_family = 23;
	CHECK(bind(s6, (SOCKADDR *)&name6, sizeof(name6)) == 0);
	/* Not connection-oriented, so not "not connected". */
	CHECK(shutdown(s, SD_BOTH) == 0);
	closesocket(s);
	closesocket(s6);
}

static void connections(void)
{
	struct sockaddr_in name;
	int length = sizeof(name);
	SOCKET listener = WSASocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, 0);
	SOCKET client = WSASocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, 0), server;
	u_long number = 0;
	u_short small = 0;

	memset(&name, 0, sizeof(name));
	name.sin_family = AF_INET;
	CHECK(InetPton(AF_INET, "127.0.0.1", &name.sin_addr) == 1);
	CHECK_ERROR(shutdown(client, SD_BOTH), WSAENOTCONN);
	CHECK(bind(listener, (SOCKADDR *)&name, sizeof(name)) == 0 && listen(listener, 1) == 0);
	CHECK(getsockname(listener, (SOCKADDR *)&name, &length) == 0);
	CHECK(WSAConnect(client, (SOCKADDR *)&name, sizeof(name), NULL, NULL, NULL, NULL) == 0);
	server = WSAAccept(listener, NULL, NULL, NULL, 0);
	CHECK(server != INVALID_SOCKET);
	CHECK(WSAHtons(server, 0x1234, &small) == 0 && small == htons(0x1234));
	CHECK(WSANtohs(server, small, &small) == 0 && small == 0x1234);
	CHECK(WSAHtonl(server, 0x12345678, &number) == 0 && number == htonl(0x12345678));
	CHECK(WSANtohl(server, number, &number) == 0 && number == 0x12345678);
	CHECK_ERROR(WSAHtons(server, 1, NULL), WSAEFAULT);
	closesocket(server);
	closesocket(client);
	closesocket(listener);
	CHECK_ERROR(WSAHtons(server, 1, &small), WSAENOTSOCK);
}

static void formats(void)
{
	char text[32];
	CHECK(sprintf(text, "%I64u", (UINT64)1 << 40) == 13 && !strcmp(text, "1099511627776"));
	RtlCopyMemory(text, "copied", 7);
	CHECK(!strcmp(text, "copied"));
	SecureZeroMemory(text, sizeof(text));
	CHECK(text[0] == 0 && text[6] == 0 && ERROR_OUTOFMEMORY == 14);
}

/* In the style of a library that makes a UDP socket of its own, with a reserved port. */
static HRESULT create_udp_socket(_Out_ SOCKET *created)
{
	HRESULT result = S_OK;
	UINT64 token = 0;
	DWORD bytes = 0, affinity = 0;
	BOOLEAN reserved = FALSE;
	SOCKADDR_INET address;
	INT option = FALSE;
	SOCKET s = WSASocketW(AF_INET6, SOCK_DGRAM, IPPROTO_UDP, NULL, 0, WSA_FLAG_NO_HANDLE_INHERIT | WSA_FLAG_OVERLAPPED);

	if (s == INVALID_SOCKET)
		return HRESULT_FROM_WIN32(WSAGetLastError());
	if (setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, (char *)&option, sizeof(option)) == SOCKET_ERROR)
		result = HRESULT_FROM_WIN32(WSAGetLastError());
	/* This code is not supported here. */
	CHECK_ERROR(WSAIoctl(s, SIO_CPU_AFFINITY, &affinity, sizeof(affinity), NULL, 0, &bytes, NULL, NULL), WSAEOPNOTSUPP);
	if (acquire_block(s, 0, 1, &token) == NO_ERROR) {
		reserved = WSAIoctl(s, SIO_ASSOCIATE_PORT_RESERVATION, &token, sizeof(token), NULL, 0, &bytes, NULL, NULL) == 0;
		ZeroMemory(&address, sizeof(address));
		address.si_family = AF_INET6;
		if (bind(s, (PSOCKADDR)&address, sizeof(address.Ipv6)) == SOCKET_ERROR)
			result = HRESULT_FROM_WIN32(WSAGetLastError());
	}
	CHECK(reserved);
	*created = s;
	return result;
}

int main(void)
{
	WSADATA data;
	SOCKET s = INVALID_SOCKET, other;
	UINT64 token = 0;
	OVERLAPPED overlapped;
	DWORD bytes = 0;
	WSAPROTOCOL_INFOA info;

	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	CHECK(SUCCEEDED(create_udp_socket(&s)));
	CHECK(HRESULT_FROM_WIN32(WSAEADDRINUSE) == (HRESULT)0x80072740u && FAILED(HRESULT_FROM_WIN32(5)));
	CHECK(WSADuplicateSocketA(s, GetCurrentProcessId(), &info) == 0);
	other = WSASocketA(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &info, 0, WSA_FLAG_OVERLAPPED);
	CHECK(other != INVALID_SOCKET && closesocket(other) == 0);
	/* Done at once; GetOverlappedResult, the other function for this, returns the result. */
	ZeroMemory(&overlapped, sizeof(overlapped));
	CHECK(acquire_block(s, 0, 2, &token) == NO_ERROR);
	CHECK(WSAIoctl(s, SIO_RELEASE_PORT_RESERVATION, &token, sizeof(token), NULL, 0, &bytes, &overlapped, NULL) == 0);
	CHECK(GetOverlappedResult((HANDLE)s, &overlapped, &bytes, TRUE) && bytes == 0);
	closesocket(s);
	CHECK(!GetOverlappedResult((HANDLE)s, &overlapped, &bytes, TRUE) && GetLastError() == ERROR_INVALID_HANDLE);
	messages(WSAEADDRINUSE, NULL);
	messages(ERROR_SHARING_VIOLATION, NULL);
	addresses();
	connections();
	formats();
	CHECK(WSACleanup() == 0);
	printf("%d failures\n", failures);
	return failures != 0;
}
