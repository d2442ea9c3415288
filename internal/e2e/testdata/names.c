// Preloaded, it resolves the names in the file NAMES, "name=address name=address ...", for
// programs that are started as pods of Kubernetes and find each other by name. Other names
// are resolved as ever.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res) {
	int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		(int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
	const char *path = getenv("NAMES");
	FILE *file = path == NULL ? NULL : fopen(path, "r");
	char names[1024] = "", address[64];
	if (file != NULL) {
		names[fread(names, 1, sizeof names - 1, file)] = '\0';
		fclose(file);
	}
	if (node != NULL && *node != '\0') {
		size_t n = strlen(node);
		for (const char *at = names; (at = strstr(at, node)) != NULL; at += n) {
			if ((at == names || at[-1] == ' ') && at[n] == '=' && sscanf(at + n + 1, "%63s", address) == 1)
				return next(address, service, hints, res);
		}
	}
	return next(node, service, hints, res);
}
