/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * wmain, _wtoi, and printing with Microsoft's formats: in a wide format %s is a
 * wide string, and %I64d, %I32d, %ws and %hs are known in wide and narrow ones.
 * Output is UTF-8.
 *
 * The printing functions are replaced by macros that look like calls, so that
 * nothing but calls is replaced. Define PORTKEEP_SYSTEM_PRINTF before the first
 * Windows header to keep the system's.
 */
#ifndef PORTKEEP_TEXT_H
#define PORTKEEP_TEXT_H

#include "portkeep_types.h"
/* The C++ headers take the names away again, so they have to be done with that before. */
#ifdef __cplusplus
#include <cstdio>
#include <cwchar>
#endif
#include <stdarg.h>
#include <stdio.h>

PORTKEEP_BEGIN
int _wtoi(const WCHAR *text);
WCHAR **portkeep_ws_wide_arguments(char *const *arguments);
int portkeep_ws_vfwprintf(FILE *stream, const wchar_t *format, va_list arguments);
int portkeep_ws_vswprintf(wchar_t *text, size_t length, const wchar_t *format, va_list arguments);
int portkeep_ws_vfprintf(FILE *stream, const char *format, va_list arguments);
int portkeep_ws_vsnprintf(char *text, size_t length, const char *format, va_list arguments);
extern char **environ;
PORTKEEP_END

/*
 * wmain is called by a main that this makes, with what the program's wmain
 * takes. A declaration apart from the definition has to be written
 * int (wmain)(int, wchar_t **).
 */
#ifdef __cplusplus
static inline int portkeep_ws_call(int (*f)(), char **) { return f(); }
static inline int portkeep_ws_call(int (*f)(int, WCHAR **), char **argv)
{
	int argc = 0;
	while (argv[argc])
		argc++;
	return f(argc, portkeep_ws_wide_arguments(argv));
}
static inline int portkeep_ws_call(int (*f)(int, WCHAR **, WCHAR **), char **argv)
{
	int argc = 0;
	while (argv[argc])
		argc++;
	return f(argc, portkeep_ws_wide_arguments(argv), portkeep_ws_wide_arguments(environ));
}
#define PORTKEEP_CALL_WMAIN(f, argc, argv) portkeep_ws_call(f, argv)
#else
static __attribute__((unused)) int portkeep_ws_call(void (*f)(void), int parameters, int argc, char **argv)
{
	if (parameters == 3)
		return ((int (*)(int, WCHAR **, WCHAR **))f)(argc, portkeep_ws_wide_arguments(argv),
							     portkeep_ws_wide_arguments(environ));
	if (parameters == 2)
		return ((int (*)(int, WCHAR **))f)(argc, portkeep_ws_wide_arguments(argv));
	return ((int (*)(void))f)();
}
#define PORTKEEP_CALL_WMAIN(f, argc, argv)                                                                \
	portkeep_ws_call((void (*)(void))&f,                                                              \
			 __builtin_types_compatible_p(__typeof__(f), int(int, WCHAR **, WCHAR **)) ? 3    \
			 : __builtin_types_compatible_p(__typeof__(f), int(int, WCHAR **)) ? 2 : 0, argc, argv)
#endif

#define wmain(...)                                          \
	wmain(__VA_ARGS__);                                 \
	int main(int argc, char **argv)                     \
	{                                                   \
		(void)argc;                                 \
		return PORTKEEP_CALL_WMAIN(wmain, argc, argv); \
	}                                                   \
	int wmain(__VA_ARGS__)

#ifndef PORTKEEP_SYSTEM_PRINTF
#define PORTKEEP_PRINTING(name, parameters, last, call)                       \
	static __attribute__((unused)) int portkeep_ws_##name parameters      \
	{                                                                     \
		va_list arguments;                                            \
		int result;                                                   \
		va_start(arguments, last);                                    \
		result = call;                                                \
		va_end(arguments);                                            \
		return result;                                                \
	}
PORTKEEP_PRINTING(wprintf, (const wchar_t *format, ...), format,
		  portkeep_ws_vfwprintf(stdout, format, arguments))
PORTKEEP_PRINTING(fwprintf, (FILE *stream, const wchar_t *format, ...), format,
		  portkeep_ws_vfwprintf(stream, format, arguments))
PORTKEEP_PRINTING(swprintf, (wchar_t *text, size_t length, const wchar_t *format, ...), format,
		  portkeep_ws_vswprintf(text, length, format, arguments))
PORTKEEP_PRINTING(printf, (const char *format, ...), format, portkeep_ws_vfprintf(stdout, format, arguments))
PORTKEEP_PRINTING(fprintf, (FILE *stream, const char *format, ...), format,
		  portkeep_ws_vfprintf(stream, format, arguments))
PORTKEEP_PRINTING(snprintf, (char *text, size_t length, const char *format, ...), format,
		  portkeep_ws_vsnprintf(text, length, format, arguments))

#ifdef __cplusplus
/* std::printf and the like become std::portkeep_ws_printf. */
namespace std
{
using ::portkeep_ws_fprintf;
using ::portkeep_ws_fwprintf;
using ::portkeep_ws_printf;
using ::portkeep_ws_snprintf;
using ::portkeep_ws_swprintf;
using ::portkeep_ws_vfprintf;
using ::portkeep_ws_vfwprintf;
using ::portkeep_ws_vsnprintf;
using ::portkeep_ws_vswprintf;
using ::portkeep_ws_wprintf;
} // namespace std
#endif

#define wprintf(...) portkeep_ws_wprintf(__VA_ARGS__)
#define fwprintf(...) portkeep_ws_fwprintf(__VA_ARGS__)
#define swprintf(...) portkeep_ws_swprintf(__VA_ARGS__)
#define vfwprintf(...) portkeep_ws_vfwprintf(__VA_ARGS__)
#define vswprintf(...) portkeep_ws_vswprintf(__VA_ARGS__)
#define printf(...) portkeep_ws_printf(__VA_ARGS__)
#define fprintf(...) portkeep_ws_fprintf(__VA_ARGS__)
#define snprintf(...) portkeep_ws_snprintf(__VA_ARGS__)
#define _snprintf(...) portkeep_ws_snprintf(__VA_ARGS__)
#define vfprintf(...) portkeep_ws_vfprintf(__VA_ARGS__)
#define vsnprintf(...) portkeep_ws_vsnprintf(__VA_ARGS__)
#endif

#endif
