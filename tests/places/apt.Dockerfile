# Packages whose maintainer scripts do more than unpack, and programs that ask for much.
FROM {debian} AS build
ENV DEBIAN_FRONTEND=noninteractive
# As Debian's images on Docker Hub have it: files of packages are not synced one by one.
RUN echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/unsafe-io
# Several places may have the machine's network at once: PostgreSQL listens on its socket alone.
RUN mkdir -p /etc/postgresql-common/createcluster.d \
 && echo "listen_addresses = ''" > /etc/postgresql-common/createcluster.d/socket.conf
RUN apt-get update \
 && apt-get install -y --no-install-recommends default-jre-headless gcc libc6-dev postgresql python3-minimal \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
RUN printf '#include <stdio.h>\nint main(void) { return puts("compiled") < 0; }\n' > /hello.c && gcc -static -o /hello /hello.c && /hello
RUN java -XshowSettings:system -version 2>&1 | tee /java && java -version
RUN pg_ctlcluster $(pg_lsclusters -h | cut -d' ' -f1,2) start \
 && su postgres -c 'psql -Atc "create table kept as select 42 as answer" -c "select answer from kept"' | tee /answer
RUN python3 -c 'import os; print(os.readlink("/proc/self/exe"), len(os.listdir("/proc/self/fd")), open("/proc/self/comm").read())' > /python
RUN ! ps -C postgres > /dev/null 2>&1 && test -e /answer
FROM scratch
COPY --from=build /hello /answer /python /java /
