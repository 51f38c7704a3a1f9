/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The part of the Windows interface that programs around port reservations use: types, events, waiting, errors,
 * cancelling. Everything that is declared here works; the rest is not declared.
 */
#ifndef PORTKEEP_WINDOWS_H
#define PORTKEEP_WINDOWS_H

#include "portkeep_text.h"
#include "portkeep_types.h"

#define INVALID_HANDLE_VALUE ((HANDLE)(LONG_PTR)-1)
#define INFINITE 0xffffffffu
#define WAIT_OBJECT_0 0u
#define WAIT_ABANDONED 0x80u
#define WAIT_ABANDONED_0 0x80u
#define WAIT_TIMEOUT 258u
#define WAIT_IO_COMPLETION 0xc0u
#define WAIT_FAILED 0xffffffffu
#define MAXIMUM_WAIT_OBJECTS 64
#define STATUS_PENDING ((DWORD)0x103)

#define NO_ERROR 0
#define ERROR_SUCCESS 0
#define ERROR_ACCESS_DENIED 5
#define ERROR_INVALID_HANDLE 6
#define ERROR_NOT_ENOUGH_MEMORY 8
#define ERROR_OUTOFMEMORY 14
#define ERROR_SHARING_VIOLATION 32
#define ERROR_NOT_SUPPORTED 50
#define ERROR_INVALID_PARAMETER 87
#define ERROR_OPERATION_ABORTED 995
#define ERROR_IO_INCOMPLETE 996
#define ERROR_IO_PENDING 997
#define ERROR_MR_MID_NOT_FOUND 317
#define ERROR_NOT_FOUND 1168
#define ERROR_INSUFFICIENT_BUFFER 122
#define ERROR_MORE_DATA 234

/* Only the system's messages, in English. Other sources of text fail with ERROR_INVALID_PARAMETER. */
#define FORMAT_MESSAGE_ALLOCATE_BUFFER 0x100u
#define FORMAT_MESSAGE_IGNORE_INSERTS 0x200u
#define FORMAT_MESSAGE_FROM_STRING 0x400u
#define FORMAT_MESSAGE_FROM_HMODULE 0x800u
#define FORMAT_MESSAGE_FROM_SYSTEM 0x1000u
#define FORMAT_MESSAGE_ARGUMENT_ARRAY 0x2000u
#define FORMAT_MESSAGE_MAX_WIDTH_MASK 0xffu
#define LANG_NEUTRAL 0
#define LANG_ENGLISH 9
#define SUBLANG_NEUTRAL 0
#define SUBLANG_DEFAULT 1
#define MAKELANGID(primary, sub) ((WORD)((WORD)(sub) << 10 | (WORD)(primary)))

typedef struct _OVERLAPPED {
	ULONG_PTR Internal;
	ULONG_PTR InternalHigh;
	union {
		__extension__ struct {
			DWORD Offset;
			DWORD OffsetHigh;
		};
		PVOID Pointer;
	};
	HANDLE hEvent;
} OVERLAPPED, *LPOVERLAPPED;

#define HasOverlappedIoCompleted(overlapped) (((DWORD)(overlapped)->Internal) != STATUS_PENDING)

PORTKEEP_BEGIN
DWORD GetCurrentProcessId(void);
DWORD FormatMessageA(DWORD flags, LPCVOID source, DWORD code, DWORD language, LPSTR text, DWORD size, va_list *arguments);
DWORD FormatMessageW(DWORD flags, LPCVOID source, DWORD code, DWORD language, LPWSTR text, DWORD size, va_list *arguments);
/* Only for memory that FormatMessage allocated. */
HLOCAL LocalFree(HLOCAL memory);
DWORD GetLastError(void);
void SetLastError(DWORD code);
void Sleep(DWORD milliseconds);
DWORD SleepEx(DWORD milliseconds, BOOL alertable);
/* Events have no names here: the last argument must be NULL. */
HANDLE CreateEventA(void *attributes, BOOL manual, BOOL set, LPCSTR name);
HANDLE CreateEventW(void *attributes, BOOL manual, BOOL set, LPCWSTR name);
BOOL SetEvent(HANDLE event);
BOOL ResetEvent(HANDLE event);
BOOL CloseHandle(HANDLE handle);
HANDLE GetCurrentThread(void);
DWORD WaitForSingleObject(HANDLE handle, DWORD milliseconds);
DWORD WaitForSingleObjectEx(HANDLE handle, DWORD milliseconds, BOOL alertable);
DWORD WaitForMultipleObjects(DWORD count, const HANDLE *handles, BOOL all, DWORD milliseconds);
DWORD WaitForMultipleObjectsEx(DWORD count, const HANDLE *handles, BOOL all, DWORD milliseconds, BOOL alertable);
/* The handle is a socket: CancelIoEx((HANDLE)s, ...). */
BOOL CancelIoEx(HANDLE socket, LPOVERLAPPED overlapped);
BOOL CancelIo(HANDLE socket);
BOOL GetOverlappedResult(HANDLE socket, LPOVERLAPPED overlapped, LPDWORD bytes, BOOL wait);
PORTKEEP_END

#ifdef UNICODE
#define CreateEvent CreateEventW
#define FormatMessage FormatMessageW
#else
#define CreateEvent CreateEventA
#define FormatMessage FormatMessageA
#endif

#if !defined(WIN32_LEAN_AND_MEAN) && !defined(_SYS_SOCKET_H)
#include "winsock2.h"
#endif

#endif
