/* The floor of a speaker: the least that routes in the kernel cost, by the smallest program that puts
 * them there. routes COUNT GATEWAY LINK: COUNT prefixes of /26 from 10.0.0.0 on, 128 to a send, of
 * which only the last is acknowledged; then the same removed. Prints four numbers, in microseconds:
 * wall and processor time of adding, and of removing. */
#include <arpa/inet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 128, PROTOCOL = 116, METRIC = 512 };

static char buffer[BATCH * 64];

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static double wall(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static double processor(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void attribute(struct nlmsghdr *m, unsigned short type, unsigned value) {
	struct rtattr *a = (struct rtattr *)((char *)m + m->nlmsg_len);
	a->rta_type = type;
	a->rta_len = RTA_LENGTH(sizeof value);
	memcpy(RTA_DATA(a), &value, sizeof value);
	m->nlmsg_len += RTA_SPACE(sizeof value);
}

static void send_all(int fd, unsigned short type, unsigned short flags, unsigned count,
		     unsigned gateway, unsigned link) {
	size_t used = 0;
	for (unsigned i = 0; i < count; i++) {
		int last = i % BATCH == BATCH - 1 || i == count - 1;
		struct nlmsghdr *m = (struct nlmsghdr *)(buffer + used);
		struct rtmsg *route = NLMSG_DATA(m);
		memset(m, 0, NLMSG_SPACE(sizeof *route));
		m->nlmsg_type = type;
		m->nlmsg_flags = NLM_F_REQUEST | flags | (last ? NLM_F_ACK : 0);
		m->nlmsg_len = NLMSG_LENGTH(sizeof *route);
		route->rtm_family = AF_INET;
		route->rtm_dst_len = 26;
		route->rtm_table = RT_TABLE_MAIN;
		route->rtm_protocol = PROTOCOL;
		route->rtm_type = RTN_UNICAST;
		attribute(m, RTA_DST, htonl(0x0a000000u + (i << 6)));
		attribute(m, RTA_PRIORITY, METRIC);
		attribute(m, RTA_GATEWAY, gateway);
		attribute(m, RTA_OIF, link);
		used += m->nlmsg_len;
		if (!last)
			continue;
		if (send(fd, buffer, used, 0) < 0)
			fail("send");
		used = 0;
		char reply[8192];
		ssize_t length = recv(fd, reply, sizeof reply, 0);
		if (length < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)))
			fail("recv");
		struct nlmsgerr *e = NLMSG_DATA((struct nlmsghdr *)reply);
		if (e->error) {
			fprintf(stderr, "routes: %s\n", strerror(-e->error));
			exit(1);
		}
	}
}

int main(int argc, char **argv) {
	if (argc != 4) {
		fprintf(stderr, "usage: routes COUNT GATEWAY LINK\n");
		return 2;
	}
	unsigned count = strtoul(argv[1], NULL, 10), gateway = inet_addr(argv[2]);
	unsigned link = if_nametoindex(argv[3]);
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		fail("socket");
	double at = wall(), used = processor();
	send_all(fd, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, count, gateway, link);
	double added = wall(), added_used = processor();
	send_all(fd, RTM_DELROUTE, 0, count, gateway, link);
	printf("%.0f %.0f %.0f %.0f\n", added - at, added_used - used, wall() - added,
	       processor() - added_used);
	return 0;
}
