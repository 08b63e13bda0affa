"""An exported folder, uploaded to the hub as a model of the user's."""

from pathlib import Path

from lmsd.errors import UserError


def push(folder: Path, name: str) -> str:
    """Upload everything in a folder as the model USER/NAME, made if it is not there; its address.

    Raises UserError where the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(name, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder).commit_url)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(
            f"hub={name}: {said}; the export itself lies in {folder}: log in (hf auth login), then upload it "
            f"(hf upload {name} {folder})"
        ) from error
