# Long enough at the container's root for another build to begin.
FROM {busybox}
RUN sleep 3 && echo slept > /slept
