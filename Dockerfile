# bareboat's own image. ./build-self builds it; by hand:
#   bareboat build --build-context bin=DIRECTORY -o type=oci,dest=OUT,tar=false .
# DIRECTORY holds the static binary `bareboat`, and may hold `ca-certificates.crt`; without that file the certificates
# that are compiled in are trusted.

FROM scratch AS bareboat
COPY --from=bin --chmod=755 bareboat /bareboat/bareboat
COPY --chmod=644 LICENSE /bareboat/LICENSE

# It starts where there is nothing else.
FROM bareboat AS proof
RUN ["/bareboat/bareboat", "--version"]

FROM scratch
COPY --from=proof /bareboat /bareboat
COPY --from=bin --chmod=644 ca-certificates.crt* /etc/ssl/certs/
ENV PATH=/bareboat:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /workspace
ENTRYPOINT ["/bareboat/bareboat"]
CMD ["--help"]
