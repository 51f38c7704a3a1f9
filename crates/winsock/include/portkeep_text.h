/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * wmain, _wtoi, and printing with Microsoft's formats: in a wide format %s is a
 * wide string, and %I64d, %I32d, %ws and %hs are known in wide and narrow ones.
 * Output is UTF-8.
 *
 * The printing functions are replaced by macros that look like calls, so that
 * only calls are replaced. Define PORTKEEP_SYSTEM_PRINTF before the first
 * Windows header to keep the system's.
 */
#ifndef PORTKEEP_TEXT_H
#define PORTKEEP_TEXT_H

#include "portkeep_types.h"
/* The C++ headers undefine these names, so they must come before the macros. */
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
 * This header makes a main that calls wmain with the arguments that the program's wmain requires. A declaration apart
 * from the definition has to be written int (wmain)(int, wchar_t **).
 */
#ifdef __cplusplus
static inline int portkeep_ws_call(int (*f)(), char **) { return f(); }
template <typename Arguments> static inline int portkeep_ws_call(int (*f)(int, Arguments), char **argv)
{
	int argc = 0;
	while (argv[argc])
		argc++;
	return f(argc, const_cast<Arguments>(portkeep_ws_wide_arguments(argv)));
}
template <typename Arguments, typename Environment>
static inline int portkeep_ws_call(int (*f)(int, Arguments, Environment), char **argv)
{
	int argc = 0;
	while (argv[argc])
		argc++;
	return f(argc, const_cast<Arguments>(portkeep_ws_wide_arguments(argv)),
		 const_cast<Environment>(portkeep_ws_wide_arguments(environ)));
}
#define PORTKEEP_CALL_WMAIN(f, argc, argv) portkeep_ws_call(f, argv)
#define PORTKEEP_CHECK_WMAIN(f)
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
#define PORTKEEP_IS(f, type) __builtin_types_compatible_p(__typeof__(f), type)
#define PORTKEEP_WMAIN_2(f)                                                                             \
	(PORTKEEP_IS(f, int(int, WCHAR **)) || PORTKEEP_IS(f, int(int, const WCHAR **)) ||              \
	 PORTKEEP_IS(f, int(int, WCHAR *const *)) || PORTKEEP_IS(f, int(int, const WCHAR *const *)))
#define PORTKEEP_WMAIN_3(f)                                                                             \
	(PORTKEEP_IS(f, int(int, WCHAR **, WCHAR **)) ||                                                \
	 PORTKEEP_IS(f, int(int, const WCHAR **, const WCHAR **)) ||                                    \
	 PORTKEEP_IS(f, int(int, WCHAR *const *, WCHAR *const *)) ||                                    \
	 PORTKEEP_IS(f, int(int, const WCHAR *const *, const WCHAR *const *)))
#define PORTKEEP_CALL_WMAIN(f, argc, argv) \
	portkeep_ws_call((void (*)(void))&f, PORTKEEP_WMAIN_3(f) ? 3 : PORTKEEP_WMAIN_2(f) ? 2 : 0, argc, argv)
#define PORTKEEP_CHECK_WMAIN(f)                                                                         \
	_Static_assert(PORTKEEP_WMAIN_3(f) || PORTKEEP_WMAIN_2(f) || PORTKEEP_IS(f, int(void)),         \
		       "wmain must be int wmain(void), int wmain(int, WCHAR **) or int wmain(int, WCHAR **, WCHAR **)");
#endif

#define wmain(...)                                          \
	wmain(__VA_ARGS__);                                 \
	PORTKEEP_CHECK_WMAIN(wmain)                         \
	int main(int argc, char **argv)                     \
	{                                                   \
		(void)argc;                                 \
		return PORTKEEP_CALL_WMAIN(wmain, argc, argv); \
	}                                                   \
	int wmain(__VA_ARGS__)

#ifndef PORTKEEP_SYSTEM_PRINTF
/*
 * With PORTKEEP_CHECK_FORMATS the compiler compares narrow formats with their arguments. It knows only the system's
 * formats, so it also warns about %I64d.
 */
#ifdef PORTKEEP_CHECK_FORMATS
#define PORTKEEP_FORMAT(at, first) __attribute__((__format__(__printf__, at, first)))
#else
#define PORTKEEP_FORMAT(at, first)
#endif
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
/* As in the system's function, the caller must know the length. */
static __attribute__((unused)) int portkeep_ws_vsprintf(char *text, const char *format, va_list arguments)
{
	return portkeep_ws_vsnprintf(text, 0x7fffffff, format, arguments);
}
static __attribute__((unused)) int portkeep_ws_vprintf(const char *format, va_list arguments)
{
	return portkeep_ws_vfprintf(stdout, format, arguments);
}
static __attribute__((unused)) int portkeep_ws_vwprintf(const wchar_t *format, va_list arguments)
{
	return portkeep_ws_vfwprintf(stdout, format, arguments);
}
PORTKEEP_PRINTING(wprintf, (const wchar_t *format, ...), format,
		  portkeep_ws_vfwprintf(stdout, format, arguments))
PORTKEEP_PRINTING(fwprintf, (FILE *stream, const wchar_t *format, ...), format,
		  portkeep_ws_vfwprintf(stream, format, arguments))
PORTKEEP_PRINTING(swprintf, (wchar_t *text, size_t length, const wchar_t *format, ...), format,
		  portkeep_ws_vswprintf(text, length, format, arguments))
PORTKEEP_FORMAT(1, 2) PORTKEEP_PRINTING(printf, (const char *format, ...), format, portkeep_ws_vfprintf(stdout, format, arguments))
PORTKEEP_FORMAT(2, 3) PORTKEEP_PRINTING(fprintf, (FILE *stream, const char *format, ...), format,
		  portkeep_ws_vfprintf(stream, format, arguments))
PORTKEEP_FORMAT(3, 4) PORTKEEP_PRINTING(snprintf, (char *text, size_t length, const char *format, ...), format,
		  portkeep_ws_vsnprintf(text, length, format, arguments))
PORTKEEP_FORMAT(2, 3) PORTKEEP_PRINTING(sprintf, (char *text, const char *format, ...), format,
		  portkeep_ws_vsprintf(text, format, arguments))

#ifdef __cplusplus
/* std::printf and the like become std::portkeep_ws_printf. */
namespace std
{
using ::portkeep_ws_fprintf;
using ::portkeep_ws_fwprintf;
using ::portkeep_ws_printf;
using ::portkeep_ws_snprintf;
using ::portkeep_ws_sprintf;
using ::portkeep_ws_swprintf;
using ::portkeep_ws_vfprintf;
using ::portkeep_ws_vfwprintf;
using ::portkeep_ws_vprintf;
using ::portkeep_ws_vsnprintf;
using ::portkeep_ws_vsprintf;
using ::portkeep_ws_vswprintf;
using ::portkeep_ws_vwprintf;
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
#define sprintf(...) portkeep_ws_sprintf(__VA_ARGS__)
#define vsprintf(...) portkeep_ws_vsprintf(__VA_ARGS__)
#define vprintf(...) portkeep_ws_vprintf(__VA_ARGS__)
#define vwprintf(...) portkeep_ws_vwprintf(__VA_ARGS__)
#define vfprintf(...) portkeep_ws_vfprintf(__VA_ARGS__)
#define vsnprintf(...) portkeep_ws_vsnprintf(__VA_ARGS__)
#endif

#endif
