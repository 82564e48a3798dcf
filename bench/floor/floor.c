/* The floor: the least that a routed pod needs of the kernel, by the smallest program that does it.
 *
 * Called as a CNI plugin (ADD and DEL). It reads standard input and throws it away, asks a socket
 * one question (FLOOR_SOCKET), and then does the netlink work of `twill`: a veth pair with its peer
 * born in the pod's namespace, the pod's side in one send, the host's side in another. There is no
 * JSON, no error text and no undo. What a plugin costs beyond this is its own.
 *
 * The pod's address is 10.98.x.y with x.y from FLOOR_NUMBER. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const unsigned char HOST_MAC[6] = {0xee, 0xee, 0xee, 0xee, 0xee, 0xee};
enum { PROTOCOL = 116, DELETE_GROUP = 0x7477696c };

static char buffer[8192];
static size_t used;
static unsigned sequence;

static void fail(const char *what) {
	perror(what);
	exit(1);
}

/* One message in the buffer, to be filled by attributes. */
static struct nlmsghdr *message(unsigned short type, unsigned short flags, const void *header,
				size_t length) {
	struct nlmsghdr *m = (struct nlmsghdr *)(buffer + used);
	memset(m, 0, NLMSG_SPACE(length));
	m->nlmsg_type = type;
	m->nlmsg_flags = NLM_F_REQUEST | flags;
	m->nlmsg_seq = ++sequence;
	m->nlmsg_len = NLMSG_LENGTH(length);
	memcpy(NLMSG_DATA(m), header, length);
	used += NLMSG_ALIGN(m->nlmsg_len);
	return m;
}

static struct rtattr *attribute(struct nlmsghdr *m, unsigned short type, const void *data,
				size_t length) {
	struct rtattr *a = (struct rtattr *)((char *)m + NLMSG_ALIGN(m->nlmsg_len));
	a->rta_type = type;
	a->rta_len = RTA_LENGTH(length);
	if (length)
		memcpy(RTA_DATA(a), data, length);
	m->nlmsg_len = NLMSG_ALIGN(m->nlmsg_len) + RTA_ALIGN(a->rta_len);
	used = (size_t)((char *)m - buffer) + NLMSG_ALIGN(m->nlmsg_len);
	return a;
}

static void close_nest(struct nlmsghdr *m, struct rtattr *a) {
	a->rta_len = (unsigned short)((char *)m + m->nlmsg_len - (char *)a);
}

static int open_netlink(void) {
	struct sockaddr_nl self = {.nl_family = AF_NETLINK};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0 || bind(fd, (struct sockaddr *)&self, sizeof self))
		fail("netlink");
	return fd;
}

/* Sends the buffer; only the last message is acknowledged. The link that comes back, if asked for,
 * is stored in `index` and `peer`. */
static void execute(int fd, int *index, int *peer) {
	struct nlmsghdr *last = (struct nlmsghdr *)buffer;
	for (size_t at = 0; at < used; at += NLMSG_ALIGN(last->nlmsg_len))
		last = (struct nlmsghdr *)(buffer + at);
	last->nlmsg_flags |= NLM_F_ACK;
	unsigned want = last->nlmsg_seq;
	if (send(fd, buffer, used, 0) != (ssize_t)used)
		fail("send");
	used = 0;
	static char answer[65536];
	for (;;) {
		ssize_t length = recv(fd, answer, sizeof answer, 0);
		if (length < 0)
			fail("recv");
		struct nlmsghdr *m = (struct nlmsghdr *)answer;
		for (; NLMSG_OK(m, length); m = NLMSG_NEXT(m, length)) {
			if (m->nlmsg_type == RTM_NEWLINK && index) {
				struct ifinfomsg *link = NLMSG_DATA(m);
				struct rtattr *a = IFLA_RTA(link);
				int left = (int)IFLA_PAYLOAD(m);
				*index = link->ifi_index;
				for (; RTA_OK(a, left); a = RTA_NEXT(a, left))
					if (a->rta_type == IFLA_LINK)
						*peer = *(int *)RTA_DATA(a);
			}
			if (m->nlmsg_type != NLMSG_ERROR)
				continue;
			int error = ((struct nlmsgerr *)NLMSG_DATA(m))->error;
			if (error) {
				fprintf(stderr, "message %u: %s\n", m->nlmsg_seq, strerror(-error));
				exit(1);
			}
			if (m->nlmsg_seq == want)
				return;
		}
	}
}

/* Changes of a link: up or down, name, group. */
static struct nlmsghdr *set_link(int index, int change, unsigned flags) {
	struct ifinfomsg link = {.ifi_index = index, .ifi_change = change ? IFF_UP : 0,
				 .ifi_flags = flags};
	return message(RTM_SETLINK, 0, &link, sizeof link);
}

static void address(unsigned short type, int index, in_addr_t ip) {
	struct ifaddrmsg a = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = (unsigned)index};
	unsigned short flags = type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_EXCL : 0;
	struct nlmsghdr *m = message(type, flags, &a, sizeof a);
	attribute(m, IFA_LOCAL, &ip, sizeof ip);
	attribute(m, IFA_ADDRESS, &ip, sizeof ip);
}

static void route(unsigned short type, int index, in_addr_t to, unsigned char length,
		  in_addr_t gateway) {
	struct rtmsg r = {.rtm_family = AF_INET, .rtm_dst_len = length, .rtm_table = RT_TABLE_MAIN,
			  .rtm_protocol = PROTOCOL, .rtm_type = RTN_UNICAST,
			  .rtm_scope = gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK};
	if (type == RTM_DELROUTE) {
		r.rtm_scope = RT_SCOPE_NOWHERE;
		r.rtm_type = RTN_UNSPEC;
	}
	unsigned short flags = type == RTM_NEWROUTE ? NLM_F_CREATE | NLM_F_EXCL : 0;
	struct nlmsghdr *m = message(type, flags, &r, sizeof r);
	if (length)
		attribute(m, RTA_DST, &to, sizeof to);
	if (gateway)
		attribute(m, RTA_GATEWAY, &gateway, sizeof gateway);
	attribute(m, RTA_OIF, &index, sizeof index);
}

static void neighbour(int index, in_addr_t ip) {
	struct ndmsg n = {.ndm_family = AF_INET, .ndm_ifindex = index, .ndm_state = NUD_PERMANENT};
	struct nlmsghdr *m = message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &n, sizeof n);
	attribute(m, NDA_DST, &ip, sizeof ip);
	attribute(m, NDA_LLADDR, HOST_MAC, sizeof HOST_MAC);
}

/* proxy_arp = 3 and forwarding = 1 of IPV4_DEVCONF_*, as one change with the host's other ones. And no
 * IPv6 link-local address, which the more of them there are takes the kernel the longer. */
static void answer_for_gateway(int index) {
	struct nlmsghdr *m = set_link(index, 0, 0);
	int on = 1;
	struct rtattr *spec = attribute(m, IFLA_AF_SPEC, NULL, 0);
	struct rtattr *inet = attribute(m, AF_INET, NULL, 0);
	struct rtattr *conf = attribute(m, IFLA_INET_CONF, NULL, 0);
	attribute(m, 1, &on, sizeof on);
	attribute(m, 3, &on, sizeof on);
	close_nest(m, conf);
	close_nest(m, inet);
	unsigned char none = 1; /* IN6_ADDR_GEN_MODE_NONE */
	struct rtattr *inet6 = attribute(m, AF_INET6, NULL, 0);
	attribute(m, IFLA_INET6_ADDR_GEN_MODE, &none, sizeof none);
	close_nest(m, inet6);
	close_nest(m, spec);
}

/* A socket inside the pod, and the thread back outside. */
static int open_in_pod(int pod, int home) {
	if (setns(pod, CLONE_NEWNET))
		fail("setns");
	int fd = open_netlink();
	if (setns(home, CLONE_NEWNET))
		fail("setns home");
	return fd;
}

static void ask(void) {
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	char question[64] = {0};
	strncpy(to.sun_path, getenv("FLOOR_SOCKET"), sizeof to.sun_path - 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		fail("connect");
	if (write(fd, question, sizeof question) != sizeof question ||
	    read(fd, question, sizeof question) != sizeof question)
		fail("socket");
	close(fd);
}

/* One queue from the beginning: to take away those that there are too many makes the kernel wait. */
static void one_queue(struct nlmsghdr *m) {
	unsigned one = 1;
	attribute(m, IFLA_NUM_TX_QUEUES, &one, sizeof one);
	attribute(m, IFLA_NUM_RX_QUEUES, &one, sizeof one);
}

static void create(int host, int pod, const char *name, int *index, int *peer) {
	struct ifinfomsg none = {0};
	struct nlmsghdr *m = message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &none, sizeof none);
	attribute(m, IFLA_IFNAME, name, strlen(name) + 1);
	attribute(m, IFLA_ADDRESS, HOST_MAC, sizeof HOST_MAC);
	one_queue(m);
	struct rtattr *info = attribute(m, IFLA_LINKINFO, NULL, 0);
	attribute(m, IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = attribute(m, IFLA_INFO_DATA, NULL, 0);
	struct rtattr *other = attribute(m, VETH_INFO_PEER, &none, sizeof none);
	attribute(m, IFLA_IFNAME, "eth0", 5);
	attribute(m, IFLA_NET_NS_FD, &pod, sizeof pod);
	one_queue(m);
	close_nest(m, other);
	close_nest(m, data);
	close_nest(m, info);
	m = message(RTM_GETLINK, 0, &none, sizeof none);
	attribute(m, IFLA_IFNAME, name, strlen(name) + 1);
	execute(host, index, peer);
}

static void add(int host, int inside, const char *name, int pod, in_addr_t ip) {
	in_addr_t gateway = inet_addr("169.254.1.1");
	int index = 0, peer = 0;
	create(host, pod, name, &index, &peer);
	answer_for_gateway(index);
	execute(host, NULL, NULL);
	set_link(1, 1, IFF_UP);
	address(RTM_NEWADDR, peer, ip);
	set_link(peer, 1, IFF_UP);
	route(RTM_NEWROUTE, peer, gateway, 32, 0);
	route(RTM_NEWROUTE, peer, 0, 0, gateway);
	neighbour(peer, gateway);
	execute(inside, NULL, NULL);
	set_link(index, 1, IFF_UP);
	route(RTM_NEWROUTE, index, ip, 32, 0);
	execute(host, NULL, NULL);
}

static void del(int host, int inside, const char *name, in_addr_t ip) {
	struct ifinfomsg none = {0};
	int index = 0, peer = 0;
	char parked[IFNAMSIZ];
	unsigned group = DELETE_GROUP;
	attribute(message(RTM_GETLINK, 0, &none, sizeof none), IFLA_IFNAME, name, strlen(name) + 1);
	execute(host, &index, &peer);
	snprintf(parked, sizeof parked, "twd%d", peer);
	address(RTM_DELADDR, peer, ip);
	set_link(peer, 1, 0);
	attribute(set_link(peer, 0, 0), IFLA_IFNAME, parked, strlen(parked) + 1);
	execute(inside, NULL, NULL);
	snprintf(parked, sizeof parked, "twd%d", index);
	route(RTM_DELROUTE, index, ip, 32, 0);
	set_link(index, 1, 0);
	struct nlmsghdr *m = set_link(index, 0, 0);
	attribute(m, IFLA_IFNAME, parked, strlen(parked) + 1);
	attribute(m, IFLA_GROUP, &group, sizeof group);
	execute(host, NULL, NULL);
}

int main(void) {
	char name[IFNAMSIZ];
	unsigned number = (unsigned)atoi(getenv("FLOOR_NUMBER"));
	in_addr_t ip = htonl(10U << 24 | 98U << 16 | number);
	while (read(0, buffer, sizeof buffer) > 0)
		;
	snprintf(name, sizeof name, "twlf%u", number);
	int pod = open(getenv("CNI_NETNS"), O_RDONLY | O_CLOEXEC);
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (pod < 0 || home < 0)
		fail("namespace");
	ask();
	int host = open_netlink(), inside = open_in_pod(pod, home);
	if (!strcmp(getenv("CNI_COMMAND"), "ADD"))
		add(host, inside, name, pod, ip);
	else
		del(host, inside, name, ip);
	puts("{}");
	return 0;
}
