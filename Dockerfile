# check=error=true

# A Caddy with this plugin, built by xcaddy: both in the versions of go.mod.
#
#	docker build --tag caddy-distributed-ratelimit .
#	docker run --rm --publish 8080:8080 caddy-distributed-ratelimit
#
# That serves Caddyfile.example. For a site of your own mount its Caddyfile at
# /etc/caddy/Caddyfile, and a volume at /data if Caddy is to get certificates. Further
# plugins come with
#
#	--build-arg PLUGINS='github.com/caddy-dns/cloudflare@v0.2.2 ...'
#
# Caddy runs as a user without rights, 65532, and its file is without capabilities, so
# that it also starts with --cap-drop ALL --security-opt no-new-privileges --read-only.
# So use ports from 1024: http_port 8080 and https_port 8443 in the global options, and
# --publish 80:8080 --publish 443:8443 --publish 443:8443/udp. Secrets come at run time,
# in the environment or in files; there are none in the image.
#
# Images are named by tag rather than by digest, so that building again takes in their fixes;
# which ones they were stands in the provenance of a released image.
ARG GO=1.26-alpine3.24
ARG ALPINE=3.24.1

FROM --platform=$BUILDPLATFORM golang:$GO AS build
RUN apk add --no-cache mailcap
WORKDIR /src
COPY . .
ARG VERSION=v0.0.0
ARG PLUGINS=
ARG TARGETOS
ARG TARGETARCH
ARG TARGETVARIANT
# xcaddy itself is for the machine that builds, Caddy for the machine that is to run it.
# CGO_ENABLED=0: the final image has another C library than some plugins want.
RUN go build -o /out/xcaddy github.com/caddyserver/xcaddy/cmd/xcaddy
RUN set -- && for plugin in $PLUGINS; do set -- "$@" --with "$plugin"; done && \
    CADDY_VERSION=$(go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2) \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOARM=${TARGETVARIANT#v} \
    /out/xcaddy build --with "$(go list -m)@$VERSION=." "$@" --output /out/caddy
# The final stage runs nothing, so that an image for another architecture needs no
# emulator. What the user must own is made here, and nothing else: a folder that Alpine
# has already, such as /etc, would become the user's with it.
RUN mkdir -p /out/root/config /out/root/data

FROM alpine:$ALPINE
ARG VERSION=v0.0.0
LABEL org.opencontainers.image.source=https://github.com/caddy-distributed-ratelimit/distributed-ratelimit \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=$VERSION
COPY --from=build /etc/mime.types /etc/mime.types
COPY --from=build --chown=65532:65532 /out/root/ /
COPY Caddyfile.example /etc/caddy/Caddyfile
COPY --from=build /out/caddy /usr/bin/caddy
ENV XDG_CONFIG_HOME=/config \
    XDG_DATA_HOME=/data \
    HEALTH_URL=http://127.0.0.1:2019/config/
WORKDIR /srv
USER 65532:65532
EXPOSE 8080 8443 8443/udp
# wget is busybox's. HEALTH_URL is the admin endpoint, which tells that Caddy runs; set it
# where that is off, or to a site that tells more.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --start-interval=1s \
    CMD ["/bin/sh", "-c", "exec wget -q -T 2 -O /dev/null \"$HEALTH_URL\""]
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
