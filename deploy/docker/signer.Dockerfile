# syntax=docker/dockerfile:1
# Signers, presigners and ceremonies: certmill with cgo on glibc, for PKCS#11 modules.
# SoftHSM is in it for trying; a vendor's module is mounted and named by tokens[].module
# (docs/hsm.md). Build it from the repository's root:
#
#   docker build -f deploy/docker/signer.Dockerfile --build-arg VERSION=$(git describe --tags) .
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=1 go build -trimpath -buildvcs=false \
      -ldflags "-s -w -buildid= -X github.com/certmill/certmill/internal/telemetry.Version=${VERSION}" \
      -o /certmill ./cmd/certmill

FROM debian:12-slim
LABEL org.opencontainers.image.title="certmill signer" org.opencontainers.image.licenses="Apache-2.0"
# Debian's SoftHSM lets its group alone read its configuration; ours comes by SOFTHSM2_CONF.
RUN apt-get update \
    && apt-get install -y --no-install-recommends softhsm2 \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && useradd --system --uid 65532 --no-create-home --shell /usr/sbin/nologin certmill
COPY --from=build /certmill /usr/local/bin/certmill
WORKDIR /etc/certmill
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/certmill"]
CMD ["--help"]
