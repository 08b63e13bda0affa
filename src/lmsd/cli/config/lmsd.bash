_lmsd() {
  local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
  local cur="${line##*[[:space:]]}"
  COMPREPLY=($(lmsd --complete "$line" 2>/dev/null))
  case "$COMP_WORDBREAKS" in *=*) COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*=}"}"}");; esac
  case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null;; esac
}
complete -o default -F _lmsd lmsd
