
# The names of reservations and units, which the table of commands does not have.
_portkeep_names() {
    local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} names= i
    COMPREPLY=()
    for ((i = 2; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[1]} == run && ${COMP_WORDS[i]} == -- ]] || continue
        # The words from here on belong to another command.
        if declare -F _command_offset >/dev/null; then
            _command_offset $((i + 1))
        elif ((i + 1 == COMP_CWORD)); then
            COMPREPLY=($(compgen -c -- "$cur" | sort -u))
        fi
        return
    done
    case "$before ${COMP_WORDS[1]} ${COMP_WORDS[2]}" in
        --unit\ *)
            names=$(systemctl list-units --all --plain --no-legend --type=service,scope | cut -d ' ' -f 1) ;;
        --reservation\ run\ * | [!-]*\ persist\ show | [!-]*\ persist\ delete | [!-]*\ persist\ rename | [!-]*\ persist\ set)
            names=$(portkeep persist list | awk 'NR > 1 && /^[^ ]/ { print $1 }') ;;
        --label\ list\ * | --label\ watch\ * | [!-]*\ list\ * | [!-]*\ watch\ * | [!-]*\ who\ *)
            names=$(portkeep list --no-header --columns label | awk 'NF == 1 && $1 != "-"') ;;
        [!-]*\ release\ *)
            names=$(portkeep list --no-header --columns ports,proto | awk '{ print $1 "/" $2 }') ;;
    esac 2>/dev/null
    # Any user chooses labels, and compgen evaluates the words that it gets.
    names=$(grep -Ex '[A-Za-z0-9._@:,/+-]+' <<<"$names")
    [[ $cur == -* ]] || COMPREPLY=($(compgen -W "$names" -- "$cur"))
    ((${#COMPREPLY[@]})) || _portkeep "$@"
}
complete -F _portkeep_names -o bashdefault -o default portkeep
