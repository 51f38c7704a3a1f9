/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Control codes are built from these. Address families, options and address structures are the system's, with the
 * system's values. So they are valid in every other call of the program.
 */
#ifndef PORTKEEP_WS2DEF_H
#define PORTKEEP_WS2DEF_H

#include "winsock2.h"

#define IOCPARM_MASK 0x7f
#define IOC_VOID 0x20000000u
#define IOC_OUT 0x40000000u
#define IOC_IN 0x80000000u
#define IOC_INOUT (IOC_IN | IOC_OUT)
#define IOC_UNIX 0x00000000u
#define IOC_WS2 0x08000000u
#define IOC_PROTOCOL 0x10000000u
#define IOC_VENDOR 0x18000000u
#define _WSAIO(x, y) (IOC_VOID | (x) | (y))
#define _WSAIOR(x, y) (IOC_OUT | (x) | (y))
#define _WSAIOW(x, y) (IOC_IN | (x) | (y))
#define _WSAIORW(x, y) (IOC_INOUT | (x) | (y))

/* Cancels the control codes that are pending on the socket. */
#define SIO_FLUSH _WSAIO(IOC_WS2, 4)

/* Known by name only. They fail with WSAEOPNOTSUPP, as every code that this layer does not serve. */
#define SIO_CPU_AFFINITY _WSAIOW(IOC_VENDOR, 21)

#endif
