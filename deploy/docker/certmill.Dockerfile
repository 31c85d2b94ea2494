# syntax=docker/dockerfile:1
# The roles that need no HSM: gateway, responder, stapler and the tools. One static
# binary, no shell, not root. Build it from the repository's root:
#
#   docker build -f deploy/docker/certmill.Dockerfile --build-arg VERSION=$(git describe --tags) .
#
# It is reproducible: the same sources, VERSION and Go make the same binary.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -buildvcs=false \
      -ldflags "-s -w -buildid= -X github.com/certmill/certmill/internal/telemetry.Version=${VERSION}" \
      -o /certmill ./cmd/certmill

FROM gcr.io/distroless/static-debian12:nonroot
LABEL org.opencontainers.image.title="certmill" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /certmill /usr/local/bin/certmill
WORKDIR /etc/certmill
USER 65532:65532
# 8443 REST, 8444 gRPC, 8080 OCSP, 9090 metrics and health
EXPOSE 8443 8444 8080 9090
ENTRYPOINT ["/usr/local/bin/certmill"]
CMD ["--help"]
