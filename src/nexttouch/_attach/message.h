/* A message on a socket, with a descriptor. */
#ifndef NT_MESSAGE_H
#define NT_MESSAGE_H

#include "failure.h"

/* Send `text` with `descriptor`, if that is not negative. */
struct failure message_send(int socket, const char *text, int descriptor);

#endif
