# bareboat's own images, for CI jobs that run in containers. ./build-self builds both; by hand:
#   bareboat build --build-context bin=DIRECTORY [--target shell] -o type=oci,dest=OUT,tar=false .
# DIRECTORY holds, with the modes that they are to have, bareboat/bareboat (the static binary), bareboat/ca-certificates.crt
# (whom to trust), bareboat/home (empty, 1777) and, for the variant with a shell, busybox/busybox (a static one).
#
# Nothing lies at a path that a built image may have too: where there is no other way a step runs with its stage's
# files in the place of the container's own, and directories of an image cannot be renamed.

FROM scratch AS program
COPY --from=bin bareboat /bareboat
COPY --chmod=644 LICENSE /bareboat/LICENSE

# It starts where there is nothing else.
FROM program AS proof
RUN ["/bareboat/bareboat", "--version"]

# The program alone. Any user can write in HOME.
FROM scratch AS executor
COPY --from=proof /bareboat /bareboat
ENV PATH=/bareboat:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/bareboat/home \
    SSL_CERT_FILE=/bareboat/ca-certificates.crt
WORKDIR /bareboat/home
ENTRYPOINT ["/bareboat/bareboat"]
CMD ["--help"]

FROM scratch AS applets
COPY --from=bin busybox /busybox
RUN ["/busybox/busybox", "--install", "-s", "/busybox"]

# With a shell, for runners that start a job's script in the image (GitLab looks for /busybox/sh). No ENTRYPOINT: the
# script would become its arguments.
FROM executor AS shell
COPY --from=applets /busybox /busybox
ENV PATH=/bareboat:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox
ENTRYPOINT []
CMD ["/busybox/sh"]

FROM executor
