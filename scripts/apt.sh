# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Debian packages through an apt state of our own, in the folder $APT: apt checks the
# signatures, and the machine's configuration stays as it is. Source it after lib.sh.

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# apt with its own state, reading only the source list in $APT.
private_apt() {
    local tool=$1
    shift
    "$tool" -q -o "Dir::Etc::SourceList=$APT/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State=$APT/state" -o "Dir::State::Lists=$APT/lists" -o Dir::State::status="$APT/state/status" \
        -o "Dir::Cache=$APT/cache" -o "APT::Sandbox::User=$(id -un)" -o APT::Get::List-Cleanup=0 "$@"
}

# read_index SUITE…: their package lists, from the first mirror of this machine that has them
read_index() {
    local mirror suite tried=
    command -v apt-get >/dev/null || die "there is no apt-get, to fetch Debian packages with." \
        "Use Debian 12 or 13, or build with 'make modules KDIR=<prepared kernel>'."
    [ -r "$KEYRING" ] || die "no $KEYRING to check the packages' signatures with." \
        "Install it: apt-get install debian-archive-keyring"
    mkdir -p "$APT"/{lists,cache/archives,state}/partial
    touch "$APT/state/status"
    while read -r mirror; do
        for suite; do printf 'deb [signed-by=%s] %s %s main\n' "$KEYRING" "$mirror" "$suite"; done >"$APT/sources.list"
        private_apt apt-get -o APT::Update::Error-Mode=any update >"$APT/update.log" 2>&1 && return 0
        tried+="$mirror "
    done < <(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u)
    tail -n 5 "$APT/update.log" >&2 || true
    die "cannot read the package index of $* (tried: ${tried:-no mirror configured in apt})." \
        "Check the network and apt's sources. If a signature is at fault, first upgrade debian-archive-keyring."
}
