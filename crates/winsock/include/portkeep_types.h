/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The types and macros that Windows programs use. LONG, DWORD and similar types have 32 bits on every system, as on
 * Windows. A WCHAR is the system's wchar_t, because L"..." consists of that type.
 */
#ifndef PORTKEEP_TYPES_H
#define PORTKEEP_TYPES_H

/* For -std=c11, which otherwise hides most of what a network program needs. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1
#endif
#include <stddef.h>
#include <stdint.h>
#include <wchar.h>
#include "sal.h"

typedef unsigned char u_char;
typedef unsigned short u_short;
typedef unsigned int u_int;
typedef unsigned long u_long;
typedef int BOOL;
typedef int INT;
typedef unsigned int UINT;
typedef char CHAR;
typedef unsigned char UCHAR;
typedef unsigned char BYTE;
typedef short SHORT;
typedef uint16_t USHORT;
typedef uint16_t WORD;
typedef int32_t LONG;
typedef uint32_t ULONG;
typedef uint32_t DWORD;
typedef long long LONG64;
typedef long long LONGLONG;
typedef unsigned long long ULONG64;
typedef unsigned long long ULONGLONG;
typedef unsigned long long DWORD64;
typedef uintptr_t UINT_PTR;
typedef intptr_t INT_PTR;
typedef uintptr_t ULONG_PTR;
typedef intptr_t LONG_PTR;
typedef uintptr_t DWORD_PTR;
typedef size_t SIZE_T;
typedef wchar_t WCHAR;
typedef int8_t INT8;
typedef int16_t INT16;
typedef int32_t INT32;
typedef long long INT64;
typedef uint8_t UINT8;
typedef uint16_t UINT16;
typedef uint32_t UINT32;
/* The type of a token. The system's uint64_t is another type of the same size. */
typedef unsigned long long UINT64;
typedef unsigned char BOOLEAN;
typedef int32_t HRESULT;
typedef int32_t NTSTATUS;
typedef intptr_t SSIZE_T;
#ifdef UNICODE
typedef wchar_t TCHAR;
#define TEXT(text) L##text
#else
typedef char TCHAR;
#define TEXT(text) text
#endif

#ifndef VOID
#define VOID void
#endif
typedef void *PVOID;
typedef void *LPVOID;
typedef const void *LPCVOID;
typedef void *HANDLE;
typedef void *HWND;
typedef BOOL *LPBOOL;
typedef BYTE *LPBYTE;
typedef INT *LPINT;
typedef WORD *LPWORD;
typedef LONG *LPLONG;
typedef DWORD *PDWORD;
typedef DWORD *LPDWORD;
typedef ULONG *PULONG;
typedef USHORT *PUSHORT;
typedef ULONG64 *PULONG64;
typedef DWORD_PTR *PDWORD_PTR;
typedef HANDLE *LPHANDLE;
typedef CHAR *PSTR;
typedef CHAR *LPSTR;
typedef const CHAR *PCSTR;
typedef const CHAR *LPCSTR;
typedef WCHAR *PWSTR;
typedef WCHAR *LPWSTR;
typedef const WCHAR *PCWSTR;
typedef const WCHAR *LPCWSTR;
typedef TCHAR *LPTSTR;
typedef TCHAR *PTSTR;
typedef const TCHAR *LPCTSTR;
typedef const TCHAR *PCTSTR;
typedef CHAR *PCHAR;
typedef UCHAR *PUCHAR;
typedef BYTE *PBYTE;
typedef BOOL *PBOOL;
typedef BOOLEAN *PBOOLEAN;
typedef INT *PINT;
typedef UINT *PUINT;
typedef LONG *PLONG;
typedef WORD *PWORD;
typedef UINT64 *PUINT64;
typedef SIZE_T *PSIZE_T;
typedef HANDLE *PHANDLE;
typedef HANDLE HLOCAL;

typedef union _LARGE_INTEGER {
	__extension__ struct {
		DWORD LowPart;
		LONG HighPart;
	};
	struct {
		DWORD LowPart;
		LONG HighPart;
	} u;
	LONGLONG QuadPart;
} LARGE_INTEGER, *PLARGE_INTEGER;

typedef struct _SECURITY_ATTRIBUTES {
	DWORD nLength;
	LPVOID lpSecurityDescriptor;
	BOOL bInheritHandle;
} SECURITY_ATTRIBUTES, *PSECURITY_ATTRIBUTES, *LPSECURITY_ATTRIBUTES;

typedef struct _GUID {
	uint32_t Data1;
	uint16_t Data2;
	uint16_t Data3;
	unsigned char Data4[8];
} GUID, *LPGUID;

#ifndef TRUE
#define TRUE 1
#endif
#ifndef FALSE
#define FALSE 0
#endif

/* There is one calling convention here. */
#define WINAPI
#define WSAAPI
#define WSPAPI
#define CALLBACK
#define APIENTRY
#define PASCAL
#define FAR
#define NEAR
#ifndef __cdecl
#define __cdecl
#endif
#ifndef __stdcall
#define __stdcall
#endif
#ifndef CONST
#define CONST const
#endif
#ifndef IN
#define IN
#endif
#ifndef OUT
#define OUT
#endif
#ifndef OPTIONAL
#define OPTIONAL
#endif
#ifdef __cplusplus
#define EXTERN_C extern "C"
#else
#define EXTERN_C extern
#endif
#define __int64 long long
#define __forceinline inline __attribute__((always_inline))
#define FORCEINLINE static __forceinline

#define MAX_PATH 260
#define MAXINT32 ((INT32)0x7fffffff)
#define MAXUINT32 ((UINT32)0xffffffffu)
#define MAXDWORD 0xffffffffu
#define MAXUSHORT 0xffff
#define _countof(array) (sizeof(array) / sizeof((array)[0]))
#define ARRAYSIZE(array) _countof(array)
#define UNREFERENCED_PARAMETER(parameter) ((void)(parameter))
#define ZeroMemory(at, length) ((void)__builtin_memset((at), 0, (length)))
#define RtlZeroMemory ZeroMemory
#define CopyMemory(to, from, length) ((void)__builtin_memcpy((to), (from), (length)))
#define RtlCopyMemory CopyMemory
/* The compiler must not leave it out, although the memory is not read any more. */
static inline void *SecureZeroMemory(void *at, size_t length)
{
	__builtin_memset(at, 0, length);
	__asm__ volatile("" : : "r"(at) : "memory");
	return at;
}

#define S_OK ((HRESULT)0)
#define S_FALSE ((HRESULT)1)
#define E_FAIL ((HRESULT)0x80004005u)
#define E_INVALIDARG ((HRESULT)0x80070057u)
#define E_OUTOFMEMORY ((HRESULT)0x8007000eu)
#define SUCCEEDED(result) ((HRESULT)(result) >= 0)
#define FAILED(result) ((HRESULT)(result) < 0)
static inline HRESULT HRESULT_FROM_WIN32(unsigned long code)
{
	return (HRESULT)code <= 0 ? (HRESULT)code : (HRESULT)((code & 0xffffu) | 0x80070000u);
}

#define MAKEWORD(low, high) ((WORD)((BYTE)(low) | (WORD)((BYTE)(high)) << 8))
#define MAKELONG(low, high) ((LONG)((WORD)(low) | (DWORD)((WORD)(high)) << 16))
#define LOBYTE(word) ((BYTE)((DWORD_PTR)(word) & 0xff))
#define HIBYTE(word) ((BYTE)((DWORD_PTR)(word) >> 8 & 0xff))
#define LOWORD(number) ((WORD)((DWORD_PTR)(number) & 0xffff))
#define HIWORD(number) ((WORD)((DWORD_PTR)(number) >> 16 & 0xffff))

#ifdef __cplusplus
#define PORTKEEP_BEGIN extern "C" {
#define PORTKEEP_END }
#else
#define PORTKEEP_BEGIN
#define PORTKEEP_END
#endif

#endif
