#compdef lmsd
_lmsd() {
  local -a found
  found=("${(@f)$(lmsd --complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
  [[ -n "$found" ]] && compadd -Q -S '' -- $found || _files
}
compdef _lmsd lmsd
