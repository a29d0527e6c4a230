# The router's image: the program, its licences and a user of its own on a Debian base. Which target says where the program
# comes from:
#
#   docker build --target source -t trunkline .     it is built here, from this tree (the default)
#   docker build --target binary -t trunkline .     it is dist/trunkline, which `make dist` makes
#
# BASE is what it runs on; a binary needs a glibc no older than the one it was linked with. RUST is what builds it.
ARG BASE=debian:bookworm-slim
ARG RUST=rust:1.95-bookworm

FROM ${BASE} AS runtime
RUN groupadd --gid 6432 trunkline \
    && useradd --uid 6432 --gid 6432 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin trunkline
ENV PATH=/opt/trunkline:/usr/local/bin:/usr/bin:/bin
EXPOSE 6432 6433 6434
ENTRYPOINT ["/opt/trunkline/trunkline"]
CMD ["run", "-c", "/etc/trunkline/trunkline.yaml"]

# Before the stage that builds: a builder without BuildKit works through every stage above its target. The pattern is for
# the same builders: with `source` as target there may be no such file, and a pattern may match nothing.
FROM runtime AS binary
COPY LICENSE-APACHE LICENSE-MIT dist/trunklin[e] /opt/trunkline/
USER 6432:6432

FROM ${RUST} AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked \
    && install -D --strip --mode=755 target/release/trunkline /out/trunkline \
    && install --mode=644 LICENSE-APACHE LICENSE-MIT /out/

FROM runtime AS source
COPY --from=build /out/ /opt/trunkline/
USER 6432:6432
