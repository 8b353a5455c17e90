# The image of a Culvert node: the static binary, the certificate authorities, an empty state folder, and nothing else.
#
#	docker build -t culvert .        # or podman build --format docker: the OCI format has no HEALTHCHECK
#
# scripts/build-image makes the same image with the Go of the machine, without pulling anything: it hands in the folder
# that the first stage would make. docs/sidecar.md says how the image is used.

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
# .git is part of the context, so that the binary is stamped with its version.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags='-s -w' -o /out/image/culvert ./cmd/culvert
RUN install -D -m 644 /etc/ssl/certs/ca-certificates.crt /out/image/etc/ssl/certs/ca-certificates.crt \
 && install -d /out/image/var/lib \
 && install -d -m 1777 /out/state/culvert

FROM scratch
COPY --from=build /out/image/ /
# Volumes and tmpfs take their mode from here: the image may run as any user.
COPY --from=build --chown=65532:65532 /out/state/ /var/lib/
VOLUME /var/lib/culvert

# The configuration is what the environment says, then /var/lib/culvert/culvert.conf if there is one, else
# /etc/culvert/culvert.conf.
ENV CULVERT_STATE=/var/lib/culvert XDG_CONFIG_HOME=/var/lib
USER 65532:65532
ENTRYPOINT ["/culvert"]
CMD ["up"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["/culvert", "health"]

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="culvert" \
      org.opencontainers.image.description="An unprivileged userspace WireGuard router: exit node, mesh node, sidecar" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
