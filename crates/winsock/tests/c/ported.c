/*
 * A console program as it is written for Windows. No line is changed for Linux: it has the headers in their order there
 * (one with the full stop that Windows ignores at the end of a file's name), a pragma for the linker, wide arguments,
 * formats of the Microsoft library. It acquires a block of ports and releases it again. Compiles as C and as C++.
 */
#ifndef UNICODE
#define UNICODE
#endif
#define WIN32_LEAN_AND_MEAN

#include <Windows.h.>
#include <winsock2.h>
#include <mstcpip.h>
#include <ws2ipdef.h>
#include <stdio.h>
#include <stdlib.h>

#pragma comment(lib, "ws2_32.lib")

static int failed(const WCHAR *call)
{
	wprintf(L"%s: error %d\n", call, WSAGetLastError());
	WSACleanup();
	return 1;
}

int wmain(int argc, WCHAR **argv)
{
	WSADATA data = { 0 };
	INET_PORT_RANGE range = { 0 };
	INET_PORT_RESERVATION_INSTANCE block = { 0 };
	DWORD bytes = 0;
	SOCKET owner = INVALID_SOCKET;
	int first, count;

	if (argc != 6) {
		wprintf(L"usage: %s FAMILY TYPE PROTOCOL FIRST COUNT\n", argv[0]);
		wprintf(L"%ws 2 2 17 5000 20\n", argv[0]);
		return 1;
	}
	first = _wtoi(argv[4]);
	if (first < 0 || first > 65535) {
		wprintf(L"the first port is out of range\n");
		return 1;
	}
	count = _wtoi(argv[5]);
	if (count < 0) {
		wprintf(L"the number of ports is negative\n");
		return 1;
	}
	range.StartPort = htons((USHORT)first);
	range.NumberOfPorts = (USHORT)count;
	if (WSAStartup(MAKEWORD(2, 2), &data) != 0) {
		wprintf(L"WSAStartup\n");
		return 1;
	}
	owner = socket(_wtoi(argv[1]), _wtoi(argv[2]), _wtoi(argv[3]));
	if (owner == INVALID_SOCKET)
		return failed(L"socket");
	if (WSAIoctl(owner, SIO_ACQUIRE_PORT_RESERVATION, (LPVOID)&range, sizeof(INET_PORT_RANGE), (LPVOID)&block,
		     sizeof(INET_PORT_RESERVATION_INSTANCE), &bytes, NULL, NULL) != 0)
		return failed(L"acquire");
	wprintf(L"acquired: %u bytes\n", bytes);
	wprintf(L"ports %d and %d more, token %I64d\n", htons(block.Reservation.StartPort),
		block.Reservation.NumberOfPorts - 1, block.Token);
	if (WSAIoctl(owner, SIO_RELEASE_PORT_RESERVATION, (LPVOID)&block.Token, sizeof(ULONG64), NULL, 0, &bytes, NULL, NULL) != 0)
		return failed(L"release");
	wprintf(L"released: %u bytes\n", bytes);
	if (closesocket(owner) == SOCKET_ERROR)
		return failed(L"closesocket");
	WSACleanup();
	return 0;
}
