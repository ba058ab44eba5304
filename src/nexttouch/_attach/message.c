#include "message.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

struct failure message_send(int socket, const char *text, int descriptor)
{
	union {
		char bytes[CMSG_SPACE(sizeof descriptor)];
		struct cmsghdr aligned;
	} control = {0};
	struct iovec vector = {(void *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
	if (descriptor >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_len = CMSG_LEN(sizeof descriptor);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
	}
	return sendmsg(socket, &message, 0) < 0 ? failed_call("sendmsg", errno) : failure(NOTHING);
}
