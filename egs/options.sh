# Sourced by the programs here that are in Bash: how they read their options and refuse them.

refuse() { # message
    echo "$1" >&2
    exit 2
}

number() { # option, value
    [[ $2 =~ ^[0-9]+$ ]] || refuse "option $1: '$2' is no number"
}

# Prints the comment at the top of the program, up to its `set`, if the option asks for help; else
# sees to it that a value follows.
help_or_value() { # what is left of the command line
    if [ "$1" = --help ] || [ "$1" = -h ]; then
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit
    fi
    [ $# -gt 1 ] || refuse "option '$1' needs a value"
}

# Prints the root of the working copy in whose folder the program was called, by its link there;
# nothing if it was called in the clone.
working_copy() { # the program as it was called, the recipe below egs2
    local folder task=${2##*/}
    folder=$(cd "$(dirname "$1")" && pwd -P)
    if [[ ${folder} = */egs2/$2 ]] && [ -f "${folder}/${task%1}.sh" ]; then
        echo "${folder%"/egs2/$2"}"
    fi
}

# As the runners of stock recipes refuse it.
training_yaml() { # folder, model, task: asr or enh
    local names yaml=$1/train_$3_$2.yaml
    if [ ! -f "${yaml}" ]; then
        names=$(cd "$1" && printf '%s, ' train_"$3"_*.yaml | sed "s/train_$3_\([^,]*\)\.yaml/\1/g")
        refuse "$(basename "$1"): --model='$2' is not possible: allowed is ${names%, }."
    fi
    echo "${yaml}"
}

# A YAML of the user's own is looked for where the user is; without one it is the model's.
own_or_model_yaml() { # option, its value, folder, model, task
    if [ -z "$2" ]; then
        training_yaml "${@:3}"
        return
    fi
    [ -f "$2" ] || refuse "option $1: '$2' is no file"
    readlink -f "$2"
}
