"""Over two hundred mistakes of new users, as they type them: one sentence, the way out, exit code 2.

None of them gets as far as importing torch; those that need a run or data are in test_main.
"""

import errno
import os
import subprocess
import sys

import pytest

MISTAKES = [
    ("train model.learning_rate=3", "did you mean optim.generator.lr, optim.discriminator.lr?"),
    ("train lr=1e-3", "did you mean optim.generator.lr, optim.discriminator.lr?"),
    ("train optim.generator.lr=abc", "optim.generator.lr=abc is not a number"),
    (
        "train optim.lr=1e-3",
        "unknown option 'optim.lr'; did you mean optimizer, optim.ema, optim.generator.lr?",
    ),
    (
        "train experiment=shapess",
        "experiment 'shapess' not found; did you mean shapes, shapes_",
    ),
    ("train +model.lr=3", "unknown option 'model.lr'"),
    ("train ++seed.x=3", "unknown option 'seed.x'"),
    ("train max_epochs=3", "unknown option 'max_epochs'; did you mean images?"),
    ("train trainer.devices=2", "unknown option 'trainer.devices'; did you mean trainer, devices?"),
    ("train gpus=2", "unknown option 'gpus'; did you mean devices?"),
    ("train trainer=gpus", "trainer 'gpus' not found; did you mean gpu?"),
    ("train debug=overfitt", "did you mean overfit?"),
    ("train ckpt_path=x", "unknown option 'ckpt_path'; did you mean resume?"),
    ("train batch=64", "unknown option 'batch'; did you mean batch_size"),
    ("train batch_size=sixty", "batch_size=sixty is not a whole number"),
    ("train batch_size=0", "batch_size=0 is not a whole number of at least 1"),
    ("train batch_size=10 devices=3", "does not divide by 3 devices x 1 micro-batches: take a multiple of 3"),
    ("train images=1.5", "images=1.5 is not a whole number"),
    ("train seed=1,2", "write a list as seed=[1,2], or try each: lmsd sweep seed=1,2"),
    ("train seed = 1", "cannot read 'seed': write option=value"),
    ("train seed", "cannot read 'seed': write option=value"),
    ("serve run=last serve.port=x", "serve.port=x is not a whole number from 0 to 65535"),
    (
        "serve run=last serve.porrt=8000",
        "unknown option 'serve.porrt' of lmsd serve; did you mean serve.port?",
    ),
    ("serve run=last port=8000", "lmsd serve has it under another name, serve.port=8000"),
    ("serve run=last limit.pairs=0", "limit.pairs=0 is not a whole number of at least 1"),
    ("serve run=last n=3", "lmsd serve has it under another name, limit.n=3"),
    ("serve run=last serve.exact=maybe", "serve.exact=maybe is not true or false"),
    ("serve run=last serve.wait_ms=50", "serve.wait_ms=50 is not a number from 0 to 20"),
    ("serve serve.port=1", "lmsd serve needs run=..."),
    ("serve --port 80", "lmsd serve has no option --port"),
    ("data votes", "name the folder that was serve.votes="),
    ("data votes v", "lmsd data votes needs out=FOLDER"),
    ("data votes v out=x vall=0.1", "unknown option 'vall' of lmsd data votes; did you mean val?"),
    ("data votes v out=x val=0.6 test=0.6", "leave nothing for train: make them smaller"),
    ("data votes nowhere out=x", "nowhere has no votes.jsonl"),
    ("train --seed 1", "lmsd train has no option --seed: write options as seed=VALUE"),
    ("train --seed=1", "write options as seed=1"),
    ("train --cfgg", "lmsd train has no option --cfgg; did you mean --cfg?"),
    (
        "train experiment=null",
        "'experiment=null' is no choice: leave experiment= out, or take one of cifar10",
    ),
    ("train experiment=digits,shapes", "one, try each: lmsd sweep experiment=digits,shapes"),
    ("train experiment=[digits,shape]", "experiment 'shape' not found; did you mean shapes"),
    (
        "train +experiment=digits",
        "'+experiment=digits': experiment has a choice to replace, write experiment=d",
    ),
    (
        "train data=digits",
        "data 'digits' not found; name your shards with data.shards=FOLDER; available: sha",
    ),
    ("train ~net", "'~net' is no choice: leave net= out, or take one of dit_label"),
    ("train ~logger", "'~logger' is no choice: write logger=none, or take one of"),
    ("train net=mlp net=unet_text", "net=mlp and net=unet_text: one run has one net"),
    (
        "train sampler=Tau",
        "sampler 'Tau' not found; did you mean ancestral, ddim?; available: ancestral, ddim, direct",
    ),
    ("train objective=denoising objective.times=edm", "choose with times@objective.times=, one of edm, grid"),
    ("train --cfg=job", "lmsd train has no option --cfg; did you mean --cfg job?"),
    (
        "train generator=null",
        "'generator=null' is no choice: write generator=none, or take one of none, parts",
    ),
    ("train optim=null", "optim=null: optim has options of its own, optim.generator.lr"),
    ("train discriminator.trunk=mlp", "has options of its own, discriminator.trunk.width"),
    (
        "train callbacks.foo.bar=1",
        "there is no callbacks.foo; one of your own begins with callbacks.foo._tar",
    ),
    ("train callbacks.progres.seconds=1", "there is no callbacks.progres; did you mean progress?"),
    ("train callbacks.progress=null", "take it away with '~callbacks.progress'"),
    ("train net._target_=os.system --cfg job", "_target_ 'os.system' may not be built"),
    (
        "train net._target_=lmsd.cli.runs.store.find --options",
        "_target_ 'lmsd.cli.runs.store.find' may not be built",
    ),
    ("train net._target_=lmsd.nets.UserError --cfg job", "_target_ 'lmsd.nets.UserError'"),
    ("train net._target_=lmsd.nets.unett --cfg job", "'lmsd.nets.unett' is not there: lmsd.nets defines no"),
    (
        "train experiment=shapes net=unet_pooled net.width=64",
        "unknown option 'net.width'; did you mean net.wi",
    ),
    ("train name=a/b", "name=a/b is not a name of 1 to 100 characters without a slash"),
    ("train name=", "name= is not a name of 1 to 100"),
    ("train resume=12e4", "no run '12e4' in outputs/"),
    ("demo foo=1", "unknown option 'foo'"),
    ("demo images=0", "images=0 is not a whole number of at least 1"),
    ("demo experiment=shapes", "experiment=digits and experiment=shapes: one run has one experiment"),
    ("demo debug=dry", "debug=dry makes no sense here"),
    ("plan plan.gpu=H101", "plan.gpu=H101 is not one of"),
    ("plan gpu=H100", "gpu=H100 is an option of the plan, not of its run: write plan.gpu=H100"),
    ("plan plan.mfu=2", "plan.mfu=2 is not a number"),
    ("plan plan.mfu=0", "plan.mfu=0 trains nothing"),
    ("plan plan.disk=0", "plan.disk=0 writes nothing"),
    ("plan plan.gpus=8", "unknown option 'plan.gpus'"),
    ("plan plan.gpu=H100 plan.gpu=A100", "plan.gpu= is given twice"),
    ("plan devices=auto", "devices=auto counts the GPUs of this machine"),
    ("plan experiment=digit", "experiment 'digit' not found; did you mean digits?"),
    ("plan --gpu=H100", "lmsd plan has no option --gpu"),
    ("verify-resume kills", "cannot read 'kills': write option=value"),
    ("verify-resume batch_size=10 devices=3", "does not divide by 3 devices"),
    ("verify-resume --kills=3", "lmsd verify-resume has no option --kills: write options as kills=3"),
    ("train net=unet", "net 'unet' not found; did you mean unet_text"),
    ("train net.width=wide", "net.width=wide is not a whole number of at least 1"),
    ("train net.hidden=0", "net.hidden=0 is not a number of at least 0.01"),
    ("train conditioner.length=1", "conditioner.length=1 is not a whole number of at least 3"),
    ("train net.width=-8", "net.width=-8 is not a whole number of at least 1"),
    ("train net=unet_text net.widths=64", "write net.widths=[64]"),
    ("train net=unet_text net.widths=[0]", "net.widths=[0] is not a list of whole numbers of at least 1"),
    ("train net=unet_text net.width=64", "unknown option 'net.width'; did you mean net.widths"),
    ("train optimizer=adam", "write optimizer@optim.generator=adam or optimizer@optim.discriminator=adam"),
    ("train generator.prediction=epsilon", "is not one of eps, x0, v, velocity; did you mean eps?"),
    ("train generator.precondition=edm", "generator.precondition=edm is for schedule=edm"),
    ("train objective.game.pairing=margin", "did you mean marginal?"),
    ("train objective.game.penalty.gamma=big", "objective.game.penalty.gamma=big is not a number"),
    ("train data.image_size=[32,32]", "data.image_size=[32, 32] is not a whole number"),
    ("train data.train.flip=1", "data.train.flip=1 is not true or false"),
    ("train data.flip=true", "data.flip has another name now: write data.train.flip=..."),
    ("train data.shard=data", "unknown option 'data.shard'; did you mean data.shards"),
    ("train evaluate.seeds=0", "write evaluate.seeds=[0]"),
    ("train precision=16", "precision=16 is not one of 32-true, bf16-mixed"),
    ("train accelerator=tpu", "accelerator=tpu is not one of auto, cpu, gpu"),
    ("train conditioner=clip", "conditioner.path has no value of its own: give conditioner.path="),
    ("train --options optimm", "no options 'optimm'; did you mean optim?"),
    ("train resume=nowhere", "no run 'nowhere' in outputs/"),
    ("trian", "unknown verb 'trian'; did you mean train?"),
    ("evaluate", "lmsd evaluate run=RUN"),
    ("evaluate run=last split=tset", "split=tset is not one of test, val, train; did you mean test?"),
    ("sample run=nowhere prompts=a", "no run 'nowhere'"),
    ("sample run=last prompt=a", "unknown option 'prompt' of lmsd sample; did you mean prompts?"),
    (
        "sample run=last",
        "lmsd sample needs prompts='[a red circle, a blue star]', or n=16 for images without",
    ),
    ("sample last prompts=a", "cannot read 'last': write option=value, e.g. run=last"),
    ("sample run=12e4 prompts=a", "no run '12e4' in outputs/"),
    ("sample run=null prompts=a", "run=null is not one value: give run=..."),
    ("sample run=last prompts=[]", "lmsd sample needs prompts='[a red circle, a blue star]', or n=16"),
    ("sample run=last prompts=missing.csv", "prompts=missing.csv: there is no such file"),
    ("sample run=last prompts=a seeds=[]", "seeds=[] is empty: give at least one"),
    ("sample run=last prompts=a seeds=-1", "seeds=-1 is not a whole number from 0 to"),
    ("sample run=last prompts=a steps=0", "steps=0 is not a whole number of at least 1"),
    ("sample run=last prompts=a steps=1,2", "'steps=1,2' gives several values; steps takes one"),
    ("train evaluate.interval=[0.8,0.2]", "evaluate.interval=[0.8, 0.2] is no [low, high]: give two times"),
    ("train evaluate.interval=[0.2,0.8]", "says where guidance acts, and evaluate.guidance=1 is none"),
    ("sample run=last prompts=a interval=[-1,2]", "interval=-1 is not a number of at least 0"),
    ("sample run=last prompts=a guidance=nan", "guidance=nan is not a number from -1000 to 1000"),
    (
        "sample run=last prompts=a sampler=Tau",
        "did you mean ancestral, ddim?; available: ancestral, ddim, direct",
    ),
    ("sample run=last prompts=a out=foo.json", "what is written is a .png file, take out=foo.png"),
    ("sample run=last prompts=a out=foo.jpg", "what is written is a .png file, take out=foo.png"),
    ("sample run=last prompts=a out=.", "out=. is a folder: name a file in it, out=name.png"),
    (
        "sample run=last prompts=a --steps 4",
        "lmsd sample has no option --steps: write options as steps=VALUE",
    ),
    ("sample run=last prompts=a seeds=range(0,3)", "gives several values; write a list as seeds=[0,1,2]"),
    ("sample run=last prompts=a,b", "gives several values; write a list as prompts=[a,b]"),
    ("edit run=last image=x.png", "x.png: there is no such image"),
    ("edit run=last image=x.png prompt=[a,b]", "prompt=[a,b] is not one value: give prompt=..."),
    (
        "edit run=last image=x.png prompt=a,b",
        "prompt takes one; commas within it are quoted: prompt=\"'a,b'\"",
    ),
    ("edit run=last image=x.png prompt=", "prompt= is empty: say what the image should become"),
    ("edit run=last image=x.png prompt=a strength=0", "strength=0 is not a number from 0.01 to 1"),
    ("edit run=last image=x.png prompt=a", "x.png: there is no such image"),
    ("evaluate run=last n=0", "n=0 is not a whole number of at least 2"),
    ("evaluate run=last seeds=[]", "seeds=[] is empty"),
    ("evaluate run=last ema=[]", "ema=[] is empty"),
    ("evaluate run=last steps=[4,0]", "steps=0 is not a whole number of at least 1"),
    ("evaluate run=last sampler=hein", "sampler 'hein' not found; did you mean heun?"),
    ("sweep seed=1", "nothing varies: give an option several values"),
    ("sweep seed=1,2 --dryrun", "lmsd sweep has no option --dryrun; did you mean --dry-run?"),
    ("sweep seed=1,2 seed=3", "seed= is given twice: what is swept is given once, with all its values"),
    ("sweep net=mlp net=dit,unet_text", "net= is given twice"),
    ("sweep seed=1,2 split=test", "a sweep chooses on val, and test stays unseen"),
    ("runs nothing", "no runs in outputs/ with nothing"),
    ("promote nothing", "no run 'nothing' in outputs/"),
    ("promote bakc", "no run 'bakc' in outputs/"),
    ("promote back", "there is nothing to go back to"),
    ("promote last first=yes", "first=yes"),
    ("ask last", "lmsd ask needs what="),
    ("ask last stp", "ask for one of sample, evaluate, save, stop; did you mean stop?"),
    ("ask save", "lmsd ask needs what="),
    ("ask run=last", "lmsd ask needs what="),
    ("ask run=last save now", "'now' is one word too many"),
    ("ask run=last stp", "ask for one of sample, evaluate, save, stop; did you mean stop?"),
    ("ask run=nothing save", "no run 'nothing' in outputs/"),
    ("demo --ablation objective=denoising", "--ablation trains it again with the adversary off"),
    ("demo --ablation run_dir=outputs/x", "--ablation trains two runs, and run_dir=outputs/x is one folder"),
    ("watch last", "no run 'last' in outputs/"),
    ("watch port=x", "port=x"),
    ("launch train experiment=digits", "lmsd launch train: give one of slurm, k8s, sky first"),
    ("launch slurm experiment=digit", "experiment 'digit' not found; did you mean digits"),
    ("launch k8s launch.imag=x", "unknown option 'launch.imag' of lmsd launch k8s"),
    ("compress last prune=0.3 to=x", "cannot read 'last': write option=value, e.g. run=last"),
    ("compress run=last prune=0.3", "lmsd compress needs to="),
    ("compress run=last prune=0 to=x", "prune=0"),
    ("runs --foo", "lmsd runs has no option --foo"),
    ("report --foo", "lmsd report has no option --foo"),
    ("report last format=pdf", "lmsd report has no option format=; its one option is out="),
    ("report out=x.html", "out= is the page of a comparison: lmsd report A B out=FILE.html"),
    ("doctor --fix", "lmsd doctor has no option --fix"),
    ("data features data augment=flip", "augment=flip is not one of none, shift, shift_flip"),
    ("data features data image_size=0", "image_size=0 is not a whole number of at least 1"),
    ("data features data images=0", "images=0 is not a whole number of at least 1"),
    ("data bild digits", "unknown action 'bild'; did you mean build?"),
    ("data build folder path=pictures", "where to? lmsd data build needs out=DIR"),
    (
        "data build foldr path=a out=b",
        "there is no source 'foldr'; did you mean folder, imagefolder?",
    ),
    (
        "data build ./photos out=x",
        "there is no source './photos', and no such folder or file;",
    ),
    ("data build folder out=x", "the source folder needs path=, the folder of the images"),
    ("data build folder path=nowhere out=x", "path=nowhere is not a folder"),
    (
        "data build folder path=. out=x captions=last",
        "captions=last is neither .csv nor .jsonl, nor one",
    ),
    ("data build folder path=. out=x captions=a.txt", "captions=a.txt is neither .csv nor .jsonl"),
    ("data build folder path=. out=x", "no image under .; images end in jpg, jpeg, jpe, jfif, png"),
    ("data build digits out=x path=photos", "the source 'digits' has no option path; it belongs to folder"),
    ("data build digits out=x near_duplicates=yes", "is not one of same_caption, drop, group, keep"),
    ("data build digits out=x val=1.5", "val=1.5 is not a part of the pictures; take a number in [0, 1)"),
    ("data build digits out=x size=64", "unknown option 'size' of lmsd data build"),
    ("data build cifar10 path=cifar-10-python.tar.gz out=x", "get cifar-10-binary.tar.gz from https://"),
    ("data index", "name the shards (folder, glob, brace range, URL) before the options"),
    ("data index shards", "the shard shards is missing: check its name, or fetch the file again"),
    ("data index train-{000..003}.tar", "4 of 4 shards of train-{000..003}.tar are missing: train-000.tar"),
    ("data index . decode=yes", "decode=yes is not true or false"),
    ("data index . check=true", "unknown option 'check' of lmsd data index; options: decode"),
    ("data index .", "the folder . contains no .tar shard: build some with `lmsd data build`"),
    ("data index https://host/folder", "http has no folders to list; give a range such as .../train-"),
    ("data index https://host/a.tar.gz", "'https://host/a.tar.gz' is compressed"),
    ("data index pipe:ls", "a shard is never a command; name a file, or an http or s3 URL"),
    ("data features image_size=32", "name the shards before the options"),
    ("data features . size=64", "unknown option 'size' of lmsd data features; options: kind, image_size"),
    ("train data.captions=last", "data.captions=last is not one of join, first, draw"),
    ("train data.decode=true", "data.decode=true is not one of old, new or null"),
    ("data build folder path=. path=x out=y", "path= is given twice: give it once"),
    ("data build folder out=x path=", "path= is empty: name a file or folder, or leave path= out"),
    ("data build digits out=x workers=0", "workers=0"),
    ("data build digits out=x part=0/4", "part=0/4 is no part of a build: write part=3/64"),
    ("data build edits out=x workers=2", "the source 'edits' is drawn by one process"),
    ("data merge out=x", "name the parts before the options"),
    ("data merge nowhere", "where to? lmsd data merge needs out=DIR"),
    ("data merge nowhere out=x", "nowhere is no part of a build (it has no part.json that can be read)"),
    ("data build digits out=x shard_size=0", "shard_size=0 is too small; take 1 or more"),
    (
        "data build digits out=x image_format=jpeg",
        "image_format=jpeg is not one of png, jpg; did you mean jpg?",
    ),
    ("data build digits out=x denoise=yes", "denoise=yes is not one of none, median, gaussian"),
    ("data build digits out=x similarity=2", "similarity=2.0 is not a correlation: take a number in (0, 1]"),
    ("data build digits out=x val=0.6 test=0.6", "val=0.6 and test=0.6 leave nothing for train"),
    ("data build shapes out=x train_count=-5", "train_count=-5 is too small; take 1 or more"),
    ("data build cifar10 out=x", "the source cifar10 needs path=: get cifar-10-binary.tar.gz from https://"),
    ("data build digits out=x overwrite", "cannot read 'overwrite': write option=value, e.g. overwrite="),
    ("data build digits x", "where to? lmsd data build needs out=DIR"),
    ("data build folder path=. out=x caption=a.csv", "did you mean captions?"),
    ("data build hf out=x", "there is no source 'hf', and no such folder or file; sources: digits, shapes"),
    ("data index missing/*.tar", "no file matches missing/*.tar: check the pattern, or name the folder"),
    ("data index gs://bucket/a.tar", "shards are read from files, http, https and s3, not from 'gs'"),
    ("data index s3://", "'s3://' names no bucket: check the address"),
    ("data index https:///a.tar", "'https:///a.tar' names no server: check the address"),
    ("data index train-{0..2.tar", "a range is written NAME-{000000..000009}.tar"),
    ("data features . channels=4", "channels=4 is not one of 1, 3"),
    ("data features . augment=none,shift", "gives several values; augment takes one"),
    ("sample run=last prompts=a seed=1", "unknown option 'seed' of lmsd sample; did you mean seeds?"),
    ("sample run=last prompts=a guidance=1 guidance=3", "guidance= is given twice: give it once"),
    ("sample run=last prompts=a seeds=1.5", "seeds=1.5 is not a whole number from 0 to"),
    ("sample run=last prompts=a interval=0.2-0.8", "interval=0.2-0.8 is not a number of at least 0"),
    ("sample run=last prompts=a out=", "out= is empty: name a file or folder, or leave out= out"),
    ("sample run=last prompts=a strength=0.5", "unknown option 'strength' of lmsd sample"),
    ("sample again=gone.json", "again=gone.json is not a .json that lmsd sample wrote with a grid"),
    ("sample prompts=a", "lmsd sample needs run=..."),
    ("edit run=last prompt=a", "lmsd edit needs image=..."),
    ("edit run=last image= prompt=a", "image= is empty: name a file or folder"),
    ("edit run=last image=x.png prompt=a mask=", "mask= is empty: name a file or folder, or leave mask= out"),
    ("edit run=last image=x.png prompts=a", "unknown option 'prompts' of lmsd edit; did you mean prompt?"),
    ("edit run=last image=[x.png,y.png] prompt=a", "image=[x.png,y.png] is not one value: give image=..."),
    ("edit x.png prompt=a run=last", "cannot read 'x.png': write option=value"),
    ("evaluate last", "cannot read 'last': write option=value, e.g. run=last"),
    ("evaluate run=last n=all", "n=all is not a whole number of at least 2"),
    ("evaluate run=last metrics=[fid]", "unknown option 'metrics' of lmsd evaluate; options: run, sampler"),
    (
        "evaluate run=last extractor=fid",
        "extractor=fid is not one of lmsd-cnn, lmsd-ssl, inception",
    ),
    ("evaluate run=last keep=all", "keep=all is not one of images, features"),
    ("evaluate run=last ema=[raw,]", "quote every item, ema=\"['raw']\""),
    ("evaluate run=last split=val,test", "gives several values; split takes one"),
    ("report nothing", "no run 'nothing' in outputs/; the newest: none yet"),
    ("report a b --out=x.html", "lmsd report has no option --out: write options as out=x.html"),
    ("runs state=done", "no runs in outputs/ with state=done"),
    ("train optim.generator.lr=null", "optim.generator.lr=null is not a number"),
    ("train objective=ddgan recipe=lmsd_digits", "objective.warm gives times and no _target_"),
    (
        "runs -l",
        "lmsd runs has no option -l: it lists all runs, or those with a word in their name: lmsd runs",
    ),
    ("runs --all", "lmsd runs has no option --all: it lists all runs"),
    ("runs -n 5", "lmsd runs has no option -n: it lists all runs, or those with a word in their name"),
    ("runs done", "no runs in outputs/ with done"),
    (
        "doctor --json",
        "lmsd doctor has no option --json: it looks at everything, and at shards that are named",
    ),
    ("doctor -v", "lmsd doctor has no option -v: it looks at everything"),
    (
        "doctor data.shards=data",
        "lmsd doctor has no option data.shards=: name shards alone, lmsd doctor data",
    ),
    (
        "doctor shards=data/digits",
        "lmsd doctor has no option shards=: name shards alone, lmsd doctor data/di",
    ),
    ("verify-resume kills=-1", "kills=-1 is not a whole number of at least 0"),
    ("verify-resume kills=2.5", "kills=2.5 is not a whole number of at least 0"),
    ("verify-resume out=", "out= is empty: name a file or folder, or leave out= out"),
    ("verify-resume resume=last", "resume= makes no sense here: verify-resume makes both of its runs itself"),
    ("verify-resume debug=dry", "debug=dry makes no sense here: verify-resume trains"),
    ("verify-resume kills=1 kills=2", "kills= is given twice: give it once"),
    ("verify-resume experiment=digit", "experiment 'digit' not found; did you mean digits?"),
    ("demo --ablate", "lmsd demo has no option --ablate; did you mean --ablation?"),
    ("demo resume=last", "resume= makes no sense here: lmsd demo trains a run of its own, to its end"),
    ("demo seed=one", "seed=one is not a whole number"),
    ("demo digits", "cannot read 'digits': write option=value"),
    ("report last", "no run 'last' in outputs/; the newest: none yet"),
    ("report --open", "lmsd report has no option --open: write options as open=VALUE"),
    ("report last step=100", "lmsd report has no option step=; its one option is out="),
    ("sweep lr=1e-4,3e-4", "unknown option 'lr'; did you mean optim.generator.lr, optim.discriminator.lr?"),
    ("sweep seed=1..5", "nothing varies: give an option several values, e.g. optim.generator.lr=1e-4,3e-4"),
    ("sweep seed=[1,2]", "nothing varies: seed=[1,2] is one list; several values are seed=1,2"),
    ("sweep seed=1,2 jobs=2", "jobs= is an option of the sweep, not of its trials: write sweep.jobs="),
    ("sweep seed=1,2 --jobs=2", "lmsd sweep has no option --jobs: write options as sweep.jobs=2"),
    ("sweep seed=1,2 sweep.gpus=all", "sweep.gpus=all is not a whole number of at least 0"),
    ("sweep seed=1,2 sweep.name=..", "sweep.name=.. is not a folder's name: no slash, nor . or .."),
    ("sweep seed=1,2 sweep.direction=up", "sweep.direction=up is not one of min, max"),
    ("sweep seed=1,2 sweep.monitor=loss", "sweep.monitor=loss is no score on val"),
    ("sweep seed=1,2 evaluate.n=50", "sweep.monitor=fd: it needs 128 images, and evaluate.n=50"),
    ("sweep net.width=interval(8.5,64)", "net.width=8.5 is not a whole number of at least 1"),
    (
        "sweep batch_size=30,64 devices=2,4",
        "1 of 4 combinations cannot be trained, the first of them batch_siz",
    ),
    ("train resume=last extend=last", "extend= takes all that a run had: leave resume= and init_from= out"),
    ("train extend=nowhere images=100", "no run 'nowhere' in outputs/"),
    ("train logger=wanb", "logger 'wanb' not found; did you mean wandb?"),
    ("train evaluate.every=-1", "evaluate.every=-1 is not a whole number of at least 0"),
    ("train precision=fp16", "precision=fp16 is not one of 32-true, bf16-mixed"),
    ("train keep=0", "keep=0 is not a whole number of at least 1"),
    # by people who know other tools: names, units, paths, quotes
    (
        "train images=400k",
        "images=400k is not a whole number of at least 1: units are not read, write 400_000",
    ),
    ("train batch_size=1.5M", "units are not read, write 1_500_000"),
    ("train data.image_size=32px", "data.image_size=32px is not a whole number of at least 1: units are not"),
    ("train data.image_size=32x32", "units are not read, write 32"),
    (
        "train data.shards=~/data",
        "~ is read by the shell at the start of a word alone: data.shards=$HOME/data",
    ),
    ("train amp=true", "unknown option 'amp'; did you mean precision?"),
    ("train bf16=true", "unknown option 'bf16'; did you mean precision?"),
    ("train data_dir=data", "unknown option 'data_dir'; did you mean data.shards?"),
    ("train resolution=64", "unknown option 'resolution'; did you mean data.image_size"),
    ("train model=dit", "unknown option 'model'; did you mean net?"),
    ("train method=gan", "unknown option 'method'; did you mean objective?"),
    ("train ema_decay=0.999", "unknown option 'ema_decay'; did you mean optim.ema?"),
    ("train gradient_accumulation_steps=2", "did you mean micro_batches?"),
    ("train max_grad_norm=1", "did you mean optim.clip.generator?"),
    ("train save_steps=500", "did you mean checkpoint_every?"),
    ("train eval_steps=500", "did you mean evaluate.every?"),
    ("train wandb=true", "unknown option 'wandb'; did you mean logger?"),
    ("train device=cuda:0", "unknown option 'device'; did you mean devices?"),
    ("train debug", "cannot read 'debug': write option=value, e.g. debug=..."),
    (
        "train evaluate.metrics=[fid]",
        "evaluate.metrics has options of its own, evaluate.metrics.NAME._target_=MODULE.CLASS",
    ),
    ("train resume=latest", "no run 'latest' in outputs/"),
    ("train -h=1", "lmsd train has no option -h; did you mean -h 1?"),
    # read by nothing, whatever its value
    (
        "train objective.game.penalty.kind=none objective.game.penalty.gamma=1",
        "objective.game.penalty.gamma is not read with objective.game.penalty.kind=none: leave it out",
    ),
    (
        "train objective.game.penalty.kind=exact objective.game.penalty.sigma=0.1",
        "objective.game.penalty.sigma is not read with objective.game.penalty.kind=exact",
    ),
    ("train steps=1 objective.game.jumps.last=0.5", "is not read with objective.game.jumps.steps=1"),
    (
        "train objective.warmup=0 objective.warm_rate=2",
        "objective.warm_rate is not read with objective.warmup=0",
    ),
    ("train objective.warmup=0 objective.warm.weighting=edm", "objective.warm.weighting is not read with"),
    (
        "train conditioner=none objective.game.caption_dropout=0.2",
        "objective.game.caption_dropout drops captions or classes, and conditioner=none has none",
    ),
    ("train objective=ddpo objective.windows.stride=2", "is not read with objective.windows.size=null"),
    (
        "train objective=grpo objective.advantages.history=9",
        "is not read with objective.advantages.normalize=gl",
    ),
    (
        "train objective=ddpo objective.settings.interval=[0,1]",
        "is not read with objective.settings.guidance=1",
    ),
    (
        "train evaluate.extractor.kind=clip evaluate.extractor.images=9",
        "is not read with evaluate.extractor.k",
    ),
    ("sample run=last n_samples=4", "unknown option 'n_samples' of lmsd sample; did you mean n?"),
    ("sample run=last prompts=a cfg=7.5", "unknown option 'cfg' of lmsd sample; did you mean guidance?"),
    ("sample run=last prompts=", "prompts= is empty: give prompts='[a, b]'"),
    ("sample --run last --prompts a", "lmsd sample has no option --run: write options as run=VALUE"),
    ("sample run=last prompts=a guidance=7,5", "'guidance=7,5' gives several values; guidance takes one"),
    ("edit run=last image=x.png prompt=a strength=80%", "units are not read, write 0.8"),
    ("edit run=last input=x.png prompt=a", "unknown option 'input' of lmsd edit; did you mean image?"),
    ("edit run=last image=x.png prompt=a denoise=0.5", "did you mean strength?"),
    ("edit run=last image=https://x.org/cat.png prompt=a", "images are read from files: fetch it first"),
    ("evaluate run=last split=validation", "split=validation is not one of test, val, train"),
    (
        "evaluate run=last n=10k",
        "n=10k is not a whole number of at least 2: units are not read, write 10_000",
    ),
    ("evaluate --run=last", "lmsd evaluate has no option --run: write options as run=last"),
    ("evaluate run=last out=scores.json", "unknown option 'out' of lmsd evaluate"),
    ("report outputs\\first", "no run 'outputs\\first' in outputs/"),
    ("runs --sort fd", "lmsd runs has no option --sort: it lists all runs"),
    ("doctor --gpu", "lmsd doctor has no option --gpu: it looks at everything"),
    ("demo out=x", "unknown option 'out'"),
    ("data check data", "unknown action 'check'; actions: build, index"),
    (
        "data build digits out=x test=10%",
        "test=10% is not a number, e.g. 1e-4: units are not read, write 0.1",
    ),
    ("data build mnist out=x", "there is no source 'mnist'"),
    ("sweep seed=1,2 sweep.metric=fd", "unknown option 'sweep.metric' of lmsd sweep (sweep.NAME=); did you"),
    (
        "sweep seed=1,2 sweep.monitor=fd[lmsd-ssl]",
        "it comes with evaluate.extractor.kind=lmsd-ssl or evaluate.f",
    ),
    ("sweep seed=1,2 --dry", "lmsd sweep has no option --dry: write options as sweep.dry=VALUE"),
    ("verify-resume kill=3", "unknown option 'kill'"),
]


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_gets_one_sentence(typed: str, said: str, capsys, tmp_path, monkeypatch) -> None:
    from lmsd import cli

    monkeypatch.chdir(tmp_path)
    assert cli.run(typed.split()) == 2
    told = capsys.readouterr()
    if typed == "evaluate":  # without words, the help
        assert said in told.out
        return
    lines = told.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lmsd: ")
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_mistakes_and_looks_need_neither_torch_nor_lightning() -> None:
    """One process makes several; what it has imported in the end is what they needed."""
    looks = ["--help", "train --help", "train --cfg job", "train --options", "sweep seed=1,2 --dry-run"]
    looks += ["sample --help", "doctor"]
    program = (
        "import sys; from lmsd import cli\n"
        "lines = sys.stdin.read().splitlines()\n"
        "codes = [cli.run(line.split()) for line in lines]\n"
        f"assert codes == [0] * {len(looks)} + [2] * {len(MISTAKES)}, codes\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'optuna', 'matplotlib'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    typed = "\n".join([*looks, *(words for words, _ in MISTAKES)])
    done = subprocess.run(
        [sys.executable, "-c", program], input=typed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]


TRANSCRIPTS = {
    "train model.learning_rate=3": "unknown option 'model.learning_rate'; did you mean optim.generator.lr, "
    "optim.discriminator.lr?  (all options: lmsd train --options)",
    "train optim.generator.lr=abc": "optim.generator.lr=abc is not a number, e.g. 1e-4",
    "train experiment=digit": "experiment 'digit' not found; did you mean digits?; available: "
    "cifar10, cifar10_autoencoder, cifar10_latent, digits, digits_reward, emoji, emoji_latent, "
    "pipeline_dreambooth, pipeline_full, pipeline_grpo, pipeline_lmsd, pipeline_lora, shapes, shapes_edit, "
    "shapes_reward",
    "train data.shards='data/train-{000..002}.tar'": "3 of 3 shards of data/train-{000..002}.tar are "
    "missing: data/train-000.tar, data/train-001.tar, data/train-002.tar; fetch or build them again, or name "
    "the existing ones by a glob such as 'train-*.tar'",
    "train data.shards=train-{0..2}.tar": "cannot read 'data.shards=train-{0..2}.tar': write option=value, "
    "and quote values with spaces, commas or braces: data.shards=\"'train-{0..2}.tar'\"",
    "train devices=8 accelerator=gpu": "devices=8: this machine has 2 GPUs; ask for at most 2",
    "train trainer=gpu": "accelerator=gpu: this machine has none that torch can use; take accelerator=cpu",
}
"""The exact words for the mistakes that others explain badly; further ones follow, and in tests/engine."""


@pytest.mark.parametrize("typed", TRANSCRIPTS)
def test_the_words_are_these(typed: str, capsys, tmp_path, monkeypatch) -> None:
    import torch

    from lmsd import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "devices=8" in typed else 0)
    assert cli.run(typed.split()) == 2
    assert capsys.readouterr().err == f"lmsd: {TRANSCRIPTS[typed]}\n"


def test_a_full_disk_is_no_failure_of_ours(capsys, monkeypatch) -> None:
    from lmsd import cli

    def full(arguments: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lmsd.cli.verbs.runs.main", full)
    assert cli.run(["runs"]) == 2
    said = "the disk: No space left on device; name another place, or mend this one"
    assert capsys.readouterr().err == f"lmsd: {said}\n"


def test_a_full_gpu_is_told_of_with_the_way_out(capsys, monkeypatch) -> None:
    import torch

    from lmsd import cli

    def full(arguments: list[str]) -> int:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 91.00 GiB. GPU 0 has a total capacity of 79.10 GiB of "
            "which 3 GiB is free."
        )

    monkeypatch.setattr("lmsd.cli.verbs.runs.main", full)
    assert cli.run(["runs"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "lmsd: out of GPU memory (91.00 GiB more asked for, the device has 79.10 GiB); the same training in "
        "less: micro_batches=2 (4, 8, ...), or checkpointing=true\n"
    )


def test_a_torchvision_of_another_build_is_told_of(capsys, monkeypatch) -> None:
    from lmsd import cli

    def broken(arguments: list[str]) -> int:
        raise RuntimeError("operator torchvision::nms does not exist")

    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr("lmsd.cli.verbs.runs.main", broken)
    monkeypatch.setattr("lmsd.cli.verbs.doctor.installed", versions.get)
    assert cli.run(["runs"]) == 2
    assert capsys.readouterr().err == (
        "lmsd: torchvision 0.28.0 is installed but was built for CUDA; your torch is CPU-only; "
        "nothing here needs it: pip uninstall torchvision\n"
    )
