# Small steps of the kinds that go wrong where a step is not alone on its machine.
FROM {debian} AS build
RUN export SOURCE_DATE_EPOCH=0 \
 && useradd --create-home --uid 1234 --shell /bin/bash builder \
 && su builder -c 'umask 077; id -un > ~/who; echo own > ~/own'
RUN cp /usr/bin/env /usr/local/bin/tool && setcap cap_net_raw+ep /usr/local/bin/tool && getcap /usr/local/bin/tool > /capability
WORKDIR /workspace
WORKDIR /
SHELL ["/bin/bash", "-euc"]
RUN diff <(seq 3) <(printf '1\n2\n3\n') && tail -n 1 < <(echo substituted) > /substituted
RUN (trap '' TERM HUP; exec setsid sleep 1000 > /dev/null 2>&1) & echo left > /daemon
RUN rm -rf /usr/share/doc && chmod 0711 /srv && mkdir -p /opt/new /workspace/made /tmp/made \
 && echo w > /workspace/made/file && echo t > /tmp/made/file
RUN grep -q . /workspace/made/file /tmp/made/file && ! pgrep sleep 2> /dev/null && readlink /proc/self/exe > /exe && rmdir /opt/new
FROM {busybox}
COPY --from=build /capability /substituted /daemon /exe /home/builder/who /result/
COPY --from=build /usr/local/bin/tool /result/
RUN cat /result/who /result/substituted /result/daemon > /result/all
