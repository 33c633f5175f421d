# A second build in the same container: another image of the same base.
FROM {debian}
RUN test ! -e /substituted && test ! -e /workspace/made && test ! -e /home/builder && test -d /usr/share/doc && echo again > /again
