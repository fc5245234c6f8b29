"""Train a ControlNet. Every setting is an option too: python tutorial_train.py --help"""

from controlnet.training.faults import faults_reported
from controlnet.training.settings import Settings

# Configs
settings = Settings(
    model="./models/cldm_v15.yaml",
    base="./models/control_sd15_ini.ckpt",
    data="./training/fill50k",
    output="./outputs/control",
    batch_size=4,
    logger_freq=300,
    learning_rate=1e-5,
    sd_locked=True,
    only_mid_control=False,
)


def main() -> None:
    run = settings.from_command_line(description=__doc__)
    resume_path = run.resume_path()

    # Not before the options are read: Lightning takes seconds to import
    from controlnet.training.run import TrainingData, make_model, make_trainer

    # First use cpu to load models. Pytorch Lightning will automatically move it to GPUs.
    model = make_model(run)

    # Misc
    dataset = TrainingData(run, model)
    trainer = make_trainer(run, model)

    # Train!
    trainer.fit(model, datamodule=dataset, ckpt_path=resume_path, weights_only=True)


if __name__ == "__main__":
    with faults_reported():
        main()
