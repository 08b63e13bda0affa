complete -c lmsd -a '(lmsd --complete (commandline -cp) 2>/dev/null)'
