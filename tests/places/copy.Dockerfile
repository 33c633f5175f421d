# Nothing here needs a rung: it has to build everywhere.
FROM {debian} AS source
FROM {busybox}
COPY --from=source /etc/os-release /from/debian
COPY --chown=app:app --chmod=640 file /srv/file
WORKDIR /srv/deep/er
ENV BUILT=here
