# docker build -t voice-sync . Holds the program, linked statically, the certificates that it trusts, and nothing else.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# docker build --build-arg VOICE_SYNC_COMMIT="$(git rev-parse --short=10 HEAD)": `voice-sync --version` shows it.
ARG VOICE_SYNC_COMMIT
RUN scripts/build host /voice-sync --static

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /voice-sync /voice-sync
# A number, which Kubernetes can tell not to be root's.
USER 65532:65532
ENTRYPOINT ["/voice-sync"]
