/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* None of Microsoft's extensions to Winsock is here; the header is, for those who include it out of habit. */
#ifndef PORTKEEP_MSWSOCK_H
#define PORTKEEP_MSWSOCK_H

#include "winsock2.h"

#endif
