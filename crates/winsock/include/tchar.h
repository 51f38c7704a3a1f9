/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Programs that are written for either width of characters. */
#ifndef PORTKEEP_TCHAR_H
#define PORTKEEP_TCHAR_H

#include "windows.h"

#ifdef _UNICODE
#define _T(text) L##text
#define _tmain wmain
#define _tprintf wprintf
#define _ftprintf fwprintf
#define _tcslen wcslen
#define _tcscmp wcscmp
#define _ttoi _wtoi
#else
#define _T(text) text
#define _tmain main
#define _tprintf printf
#define _ftprintf fprintf
#define _tcslen strlen
#define _tcscmp strcmp
#define _ttoi atoi
#endif
#define _TEXT(text) _T(text)
#include <stdlib.h>
#include <string.h>

#endif
